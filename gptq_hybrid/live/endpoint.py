"""The tokenizer, chat template, counters and answers of a running server, asked over kept connections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptq_hybrid.common.errors import HybridError

from .reading import Counters, read
from .scrape import Scrape

if TYPE_CHECKING:
    import httpx

    from gptq_hybrid.calibration.prompts import Prompt

_SECONDS = 120.0
# A long answer of a slow machine, behind others.
_ANSWER_SECONDS = 1800.0


class RefusedError(HybridError):
    """The server takes such a request, and refuses this one: a prompt that is too long, say."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Attributes:
        ids: its tokens, the one that ends it included; None if the server does not tell them.
        text: all that was said: thoughts, answer and calls.
        tokens: how many there are, as the server counts.
    """

    ids: tuple[int, ...] | None
    text: str
    tokens: int


@dataclass(frozen=True)
class Endpoint:
    """A server's ``/tokenize``, ``/detokenize``, ``/metrics`` and completions.

    Attributes:
        url: of the server, without a trailing slash.
        model: its name there.
        api_key: sent along, if there is one.
    """

    url: str
    model: str
    api_key: str | None = None

    def has_chat_template(self) -> bool:
        """Whether the server turns messages into a prompt."""
        body = {"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": True}
        try:
            self._post("/tokenize", body)
        except RefusedError:
            return False
        return True

    def count(self, text: str) -> int:
        """Count the tokens of a text, without special tokens around it."""
        return int(self._post("/tokenize", {"prompt": text, "add_special_tokens": False})["count"])

    def encode(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens around it."""
        return list(self._post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"])

    def render(self, prompt: Prompt) -> str:
        """Return the text of a prompt as the model reads it: its messages through the server's chat template."""
        if not prompt.messages:
            return prompt.text
        ids: Sequence[int] = self._post("/tokenize", {**prompt.body(), "add_generation_prompt": True})[
            "tokens"
        ]
        return str(self._post("/detokenize", {"tokens": list(ids)})["prompt"])

    def answer(self, prompt: Prompt, **sampling: Any) -> Answer:
        """Have a prompt answered; ``sampling`` are fields of the request, such as ``max_tokens``.

        Raises:
            RefusedError: the server refuses this request.
            HybridError: it refuses every one, or does not answer.
        """
        path = "/v1/chat/completions" if prompt.messages else "/v1/completions"
        body = {**prompt.body(), **sampling, "return_token_ids": True}
        parsed = self._post(path, body, _ANSWER_SECONDS)
        try:
            [choice] = parsed["choices"]
            ids = choice.get("token_ids")
            return Answer(
                None if ids is None else tuple(map(int, ids)),
                _said(choice),
                int(parsed["usage"]["completion_tokens"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HybridError(
                f"{self.url}{path} answers, but not as vLLM does: {json.dumps(parsed)[:300]}",
                remedy="Give the address of `vllm serve` itself.",
            ) from error

    def counters(self) -> Counters:
        """Read what the server has counted so far.

        Raises:
            HybridError: it does not answer.
        """
        response = self._send("GET", "/metrics", None)
        return read(Scrape(self.url, response.text, None)).counters

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        # Reading the system's certificates takes longer than all questions of a run; plain HTTP needs none.
        verify = self.url.startswith("https://")
        limits = httpx.Limits(max_connections=None)
        return httpx.Client(timeout=_SECONDS, headers=headers, trust_env=verify, verify=verify, limits=limits)

    def _post(self, path: str, body: Mapping[str, Any], seconds: float = _SECONDS) -> dict[str, Any]:
        response = self._send("POST", path, {"model": self.model, **body}, seconds)
        if response.status_code != 200:
            # vLLM refuses a prompt that is too long with 400, and a field that it cannot read with 422.
            kind = RefusedError if response.status_code in (400, 422) else HybridError
            raise kind(
                f"{self.url}{path} answers with status {response.status_code}: {response.text[:300]}",
                remedy="Give the address of `vllm serve` itself, and its --api-key if it wants one.",
            )
        try:
            parsed = response.json()
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise HybridError(
                f"{self.url}{path} answers, but not as vLLM does: {response.text[:300]}",
                remedy="Give the address of `vllm serve` itself.",
            )
        return parsed

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float = _SECONDS
    ) -> httpx.Response:
        import httpx

        try:
            return self._client.request(method, self.url + path, json=body, timeout=seconds)
        except httpx.HTTPError as error:
            raise HybridError(
                f"the server at {self.url} does not answer {path}: {error or type(error).__name__}"
            ) from error


def _said(choice: Mapping[str, Any]) -> str:
    """All text of a choice, in the order in which a model of this family writes it."""
    message = choice.get("message")
    if message is None:
        return str(choice["text"])
    thoughts = message.get("reasoning") or message.get("reasoning_content")
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, (thoughts, message.get("content"), *calls)))
