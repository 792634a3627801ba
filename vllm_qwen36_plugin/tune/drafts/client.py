"""Send streamed requests to a server, several in flight, and time each by the arrival of its tokens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Any

import httpx

from gptq_hybrid.calibration.prompts import Prompt
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import Acceptance, Server

# On a slow machine a long prompt behind fifteen others may wait this long for its first token.
_SECONDS = 1800.0
# The server updates its counters just after it has sent the last token.
_SETTLED_AFTER, _SETTLE_TRIES = 0.25, 40


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with tokens as the server counts them and times in milliseconds.

    Attributes:
        prompt_tokens: tokens of the prompt.
        tokens: tokens of the answer.
        ttft_ms: from the request to its first text.
        tpot_ms: from the first text to the end, per token after the first; None for an answer of fewer than two.
    """

    prompt_tokens: int
    tokens: int
    ttft_ms: float
    tpot_ms: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """Answers to a run of requests, and the seconds from the first request to the last answer."""

    answers: tuple[Answer, ...]
    seconds: float


class RequestError(HybridError):
    """The server refused a request or did not finish it."""


@dataclass(frozen=True)
class Client:
    """Requests to one server, all with the same sampling.

    Attributes:
        url: of the server, without a trailing slash.
        temperature: 0 is greedy; everything else about sampling is the server's default.
    """

    url: str
    temperature: float

    @cached_property
    def _card(self) -> dict[str, Any]:
        card: dict[str, Any] = self._get("/v1/models").json()["data"][0]
        return card

    @property
    def model(self) -> str:
        """Name of the model in requests."""
        return str(self._card["id"])

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return int(self._card["max_model_len"])

    def count(self, prompt: Prompt) -> int:
        """Count the tokens of a prompt, through the chat template if it has messages."""
        body = prompt.body() | ({"add_generation_prompt": True} if prompt.messages else {})
        return int(self._post("/tokenize", body)["count"])

    def encode(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens around it."""
        return list(self._post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"])

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text."""
        return str(self._post("/detokenize", {"tokens": list(ids)})["prompt"])

    def acceptance(self) -> Acceptance:
        """Read the server's counters, once they no longer change.

        Raises:
            RequestError: the server does not answer.
        """
        server = Server(self.url, self.model)
        try:
            now = server.acceptance()
            for _ in range(_SETTLE_TRIES):
                time.sleep(_SETTLED_AFTER)
                before, now = now, server.acceptance()
                if now == before:
                    break
        except (OSError, HTTPException) as error:
            raise _broken(error) from error
        return now

    def load(self, prompts: Sequence[Prompt], in_flight: int, max_tokens: int) -> Load:
        """Send all ``prompts`` in order, with ``in_flight`` requests at a time.

        Raises:
            RequestError: the server refused a request, or broke off.
        """
        # In a thread of its own: a signal's handler raises in the main thread, and asyncio would print a
        # traceback of an exception that is raised inside a task.
        try:
            with ThreadPoolExecutor(max_workers=1) as thread:
                return thread.submit(asyncio.run, self._load(prompts, in_flight, max_tokens)).result()
        except httpx.HTTPError as error:
            raise _broken(error) from error

    async def _load(self, prompts: Sequence[Prompt], in_flight: int, max_tokens: int) -> Load:
        waiting = list(enumerate(prompts))[::-1]
        answers: dict[int, Answer] = {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=in_flight)
        # The server is on this machine: no proxy from the environment belongs in between.
        async with httpx.AsyncClient(timeout=_SECONDS, limits=limits, trust_env=False) as http:

            async def send_waiting() -> None:
                while waiting:
                    number, prompt = waiting.pop()
                    answers[number] = await self._ask(http, number, prompt, max_tokens)

            begin = time.perf_counter()
            # Not a TaskGroup: its errors come in groups, and only the first is to be reported.
            await asyncio.gather(*(send_waiting() for _ in range(in_flight)))
            seconds = time.perf_counter() - begin
        return Load(tuple(answers[number] for number in sorted(answers)), seconds)

    async def _ask(self, http: httpx.AsyncClient, number: int, prompt: Prompt, max_tokens: int) -> Answer:
        body = {
            "model": self.model,
            **prompt.body(),
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            # The same seeds with every count of drafts.
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        path = "/v1/chat/completions" if prompt.messages else "/v1/completions"
        begin = time.perf_counter()
        first = last = None
        usage: Mapping[str, Any] | None = None
        async with http.stream("POST", self.url + path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                raise RequestError(f"the server refused a request ({response.status_code}): {text[:500]}")
            async for event in _events(response):
                if "error" in event:
                    raise RequestError(f"the server broke off an answer: {json.dumps(event['error'])[:500]}")
                now = time.perf_counter()
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    if _has_text(choice):
                        first = now if first is None else first
                    # The token that ends an answer counts but has no text.
                    if _has_text(choice) or choice.get("finish_reason"):
                        last = now
        if usage is None or last is None:
            raise RequestError("the server ended an answer without saying how many tokens it has")
        first = last if first is None else first
        tokens = int(usage["completion_tokens"])
        return Answer(
            prompt_tokens=int(usage["prompt_tokens"]),
            tokens=tokens,
            ttft_ms=1e3 * (first - begin),
            tpot_ms=1e3 * (last - first) / (tokens - 1) if tokens > 1 and last > first else None,
        )

    def _get(self, path: str) -> httpx.Response:
        try:
            return httpx.get(self.url + path, timeout=_SECONDS, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise _broken(error) from error

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = httpx.post(
                self.url + path, json={"model": self.model, **body}, timeout=_SECONDS, trust_env=False
            )
        except httpx.HTTPError as error:
            raise _broken(error) from error
        if response.status_code != httpx.codes.OK:
            raise RequestError(
                f"the server refused a request to {path} ({response.status_code}): {response.text[:500]}"
            )
        content: dict[str, Any] = response.json()
        return content


def _broken(error: Exception) -> RequestError:
    return RequestError(f"the server broke off: {type(error).__name__} {error}".rstrip())


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a stream of server-sent events, until its ``[DONE]``."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Whether a part of an answer holds text of any kind; the first part of a chat holds only a role."""
    if choice.get("text"):
        return True
    delta = choice.get("delta") or {}
    return any(value for key, value in delta.items() if key != "role")
