"""Streamed requests to a server, a number of them in flight, each timed by the arrival of its tokens."""

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

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import Acceptance, Server

from .prompts import Prompt

# A long prompt behind fifteen others may wait this long for its first token on a slow machine.
_SECONDS = 1800.0
# Counters are written just after the last token is sent.
_SETTLED_AFTER, _SETTLE_TRIES = 0.25, 40


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. ``prompt_tokens`` and ``tokens`` as the server counts them; times in milliseconds.

    ``ttft_ms``: from the request to its first text. ``tpot_ms``: from there to the end, over the tokens after the
    first; None for an answer of fewer than two.
    """

    prompt_tokens: int
    tokens: int
    ttft_ms: float
    tpot_ms: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """Answers of one run of requests, and the seconds from the first request to the last answer."""

    answers: tuple[Answer, ...]
    seconds: float


class RequestError(HybridError):
    """A request that the server refused or did not finish."""


@dataclass(frozen=True)
class Client:
    """Requests to one server, all with the same sampling.

    Attributes:
        url: of the server, without a trailing slash.
        temperature: 0 is greedy; what else bears on sampling is the server's own default.
    """

    url: str
    temperature: float

    @cached_property
    def _card(self) -> dict[str, Any]:
        found: dict[str, Any] = self._get("/v1/models").json()["data"][0]
        return found

    @property
    def model(self) -> str:
        """The name that requests have to give."""
        return str(self._card["id"])

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(self._card["max_model_len"])

    def count(self, prompt: Prompt) -> int:
        body = prompt.body() | ({"add_generation_prompt": True} if prompt.messages else {})
        return int(self._post("/tokenize", body)["count"])

    def encode(self, text: str) -> list[int]:
        return list(self._post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._post("/detokenize", {"tokens": list(ids)})["prompt"])

    def acceptance(self) -> Acceptance:
        """What the server's counters say once they stand still.

        Raises:
            RequestError: it does not answer.
        """
        server = Server(self.url, self.model)
        try:
            found = server.acceptance()
            for _ in range(_SETTLE_TRIES):
                time.sleep(_SETTLED_AFTER)
                before, found = found, server.acceptance()
                if found == before:
                    break
        except (OSError, HTTPException) as error:
            raise _broken(error) from error
        return found

    def load(self, prompts: Sequence[Prompt], in_flight: int, max_tokens: int) -> Load:
        """Ask all ``prompts``, in order, so many at a time.

        Raises:
            RequestError: the server refused one, or broke off.
        """
        # The loop has a thread of its own: a signal's handler raises in the main one, and raised inside a task
        # asyncio would print a traceback of it over the screen.
        try:
            with ThreadPoolExecutor(max_workers=1) as thread:
                return thread.submit(asyncio.run, self._load(prompts, in_flight, max_tokens)).result()
        except httpx.HTTPError as error:
            raise _broken(error) from error

    async def _load(self, prompts: Sequence[Prompt], in_flight: int, max_tokens: int) -> Load:
        waiting = list(enumerate(prompts))[::-1]
        answers: dict[int, Answer] = {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=in_flight)
        # The server is on this machine: a proxy of the environment has no business in between.
        async with httpx.AsyncClient(timeout=_SECONDS, limits=limits, trust_env=False) as http:

            async def ask_on() -> None:
                while waiting:
                    number, prompt = waiting.pop()
                    answers[number] = await self._ask(http, number, prompt, max_tokens)

            begin = time.perf_counter()
            # Not a TaskGroup, whose errors come in groups: the first one is what is to be told.
            await asyncio.gather(*(ask_on() for _ in range(in_flight)))
            seconds = time.perf_counter() - begin
        return Load(tuple(answers[number] for number in sorted(answers)), seconds)

    async def _ask(self, http: httpx.AsyncClient, number: int, prompt: Prompt, max_tokens: int) -> Answer:
        body = {
            "model": self.model,
            **prompt.body(),
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            # With each number of drafts the same draws are asked for.
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
                said = (await response.aread()).decode(errors="replace")
                raise RequestError(f"the server refused a request ({response.status_code}): {said[:500]}")
            async for event in _events(response):
                if "error" in event:
                    raise RequestError(f"the server broke off an answer: {json.dumps(event['error'])[:500]}")
                now = time.perf_counter()
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    if _says_something(choice):
                        first = now if first is None else first
                    # The token that ends an answer counts, and has no text.
                    if _says_something(choice) or choice.get("finish_reason"):
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
        found: dict[str, Any] = response.json()
        return found


def _broken(error: Exception) -> RequestError:
    return RequestError(f"the server broke off: {type(error).__name__} {error}".rstrip())


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, until its ``[DONE]``."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def _says_something(choice: Mapping[str, Any]) -> bool:
    """Whether a part of an answer holds text, of whatever kind; the first of a chat holds only a role."""
    if choice.get("text"):
        return True
    delta = choice.get("delta") or {}
    return any(value for key, value in delta.items() if key != "role")
