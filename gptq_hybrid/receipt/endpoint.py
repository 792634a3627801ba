"""The tokenizer, chat template and counters of a running server, asked over one connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.live import Counters, Scrape, read

if TYPE_CHECKING:
    import httpx

    from gptq_hybrid.calibration.prompts import Prompt

_SECONDS = 120.0


@dataclass(frozen=True)
class Endpoint:
    """A server's ``/tokenize``, ``/detokenize`` and ``/metrics``.

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
        return self._post("/tokenize", body, may_refuse=True) is not None

    def count(self, text: str) -> int:
        """Count the tokens of a text, without special tokens around it."""
        return int(self._ask("/tokenize", {"prompt": text, "add_special_tokens": False})["count"])

    def render(self, prompt: Prompt) -> str:
        """Return the text of a prompt as the model reads it: its messages through the server's chat template."""
        if not prompt.messages:
            return prompt.text
        ids: Sequence[int] = self._ask("/tokenize", {**prompt.body(), "add_generation_prompt": True})[
            "tokens"
        ]
        return str(self._ask("/detokenize", {"tokens": list(ids)})["prompt"])

    def counters(self) -> Counters:
        """Read what the server has counted so far.

        Raises:
            HybridError: it does not answer.
        """
        response = self._send("GET", "/metrics", None)
        return read(Scrape(self.url, response.text, None)).counters

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        # Reading the system's certificates takes longer than all questions of a run; plain HTTP needs none.
        verify = self.url.startswith("https://")
        return httpx.Client(timeout=_SECONDS, headers=headers, trust_env=verify, verify=verify)

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._post(path, body)
        assert answer is not None
        return answer

    def _post(self, path: str, body: Mapping[str, Any], *, may_refuse: bool = False) -> dict[str, Any] | None:
        response = self._send("POST", path, {"model": self.model, **body})
        if response.status_code == 400 and may_refuse:
            return None
        if response.status_code != 200:
            raise HybridError(
                f"{self.url}{path} answers with status {response.status_code}: {response.text[:300]}",
                remedy="Give the address of `vllm serve` itself, and its --api-key if it wants one.",
            )
        parsed: dict[str, Any] = response.json()
        return parsed

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        import httpx

        try:
            return self._client.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise HybridError(
                f"the server at {self.url} does not answer {path}: {error or type(error).__name__}"
            ) from error
