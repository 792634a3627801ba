"""The tokenizer and chat template of a running server, asked over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptq_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from gptq_hybrid.calibration.prompts import Prompt

_SECONDS = 120.0


@dataclass(frozen=True)
class Endpoint:
    """A server's ``/tokenize`` and ``/detokenize``.

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

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._post(path, body)
        assert answer is not None
        return answer

    def _post(self, path: str, body: Mapping[str, Any], *, may_refuse: bool = False) -> dict[str, Any] | None:
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            response = httpx.post(
                self.url + path,
                json={"model": self.model, **body},
                headers=headers,
                timeout=_SECONDS,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            raise HybridError(
                f"the server at {self.url} does not answer {path}: {error or type(error).__name__}"
            ) from error
        if response.status_code == 400 and may_refuse:
            return None
        if response.status_code != 200:
            raise HybridError(
                f"{self.url}{path} answers with status {response.status_code}: {response.text[:300]}",
                remedy="Give the address of `vllm serve` itself, and its --api-key if it wants one.",
            )
        parsed: dict[str, Any] = response.json()
        return parsed
