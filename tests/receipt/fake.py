"""A server as ``vllm bench serve`` and the receipt see one: endpoints, streams and counters, and no model.

Tokens are characters. With ``drafts`` every step accepts the first one and none after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.json_pages import JsonPages, served

MODEL = "made"


@dataclass
class FakeVllm:
    """The state of a fake server; tests change it while it runs.

    Attributes:
        drafts: tokens drafted a step.
        length: of the longest request.
        root: the checkpoint, as ``/v1/models`` gives it.
        caching: whether prefixes are cached.
        prompts: those that were completed.
        refuse: status with which completions are refused.
        dead: whether connections are dropped.
    """

    drafts: int = 2
    length: int = 8192
    root: str | None = None
    caching: bool = False
    chat: bool = True
    url: str = ""
    refuse: int = 0
    dead: bool = False
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, **changes: int) -> None:
        """Add to counters."""
        for name, value in changes.items():
            self.counts[name] = self.counts.get(name, 0) + value

    def answer(self, prompt: str, tokens: int) -> None:
        """Count an answer as vLLM would."""
        self.prompts.append(prompt)
        self.count(request_success=1, prompt_tokens=len(prompt), generation_tokens=tokens)
        if self.caching:
            self.count(prefix_cache_queries=len(prompt))
            if self.prompts.count(prompt) > 1:
                self.count(prefix_cache_hits=len(prompt))
        if self.drafts:
            steps = max(1, tokens // 2)
            self.count(drafts=steps, draft_tokens=steps * self.drafts, accepted_tokens=steps)

    def metrics(self) -> str:
        """The text of ``/metrics``."""
        label = f'{{engine="0",model_name="{MODEL}"'
        lines = []

        def add(name: str, value: float, more: str = "") -> None:
            lines.extend([f"# TYPE vllm:{name} counter", f"vllm:{name}{label}{more}}} {value}"])

        lines += [
            "# TYPE vllm:cache_config_info gauge",
            f'vllm:cache_config_info{label},enable_prefix_caching="{self.caching}",block_size="16",'
            'kv_cache_size_tokens="4096",cache_dtype="auto"} 1.0',
        ]
        for name in ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"):
            add(f"{name}_total", self.counts.get(name, 0))
        add("num_preemptions_total", self.counts.get("num_preemptions", 0))
        add("request_success_total", self.counts.get("request_success", 0), ',finished_reason="length"')
        add("num_requests_running", 0)
        if self.drafts:
            for name in ("drafts", "draft_tokens", "accepted_tokens"):
                add(f"spec_decode_num_{name}_total", self.counts.get(name, 0))
            for at in range(self.drafts):
                value = self.counts.get("drafts", 0) if at == 0 else 0
                add("spec_decode_num_accepted_tokens_per_pos_total", value, f',position="{at}"')
        return "\n".join(lines) + "\n"


@contextmanager
def fake_vllm(**settings: Any) -> Iterator[FakeVllm]:
    """Serve until the block ends."""
    fake = FakeVllm(**settings)

    class Handler(JsonPages):
        def get(self) -> None:
            if fake.dead:
                self.close_connection = True
                return
            pages: dict[str, Any] = {
                "/metrics": fake.metrics(),
                "/version": {"version": "0.32.0"},
                "/v1/models": {
                    "data": [{"id": MODEL, "root": fake.root or MODEL, "max_model_len": fake.length}]
                },
                "/health": "",
            }
            self.send(pages.get(self.path, ""), 200 if self.path in pages else 404)

        def post(self, body: dict[str, Any]) -> None:
            if fake.dead:
                self.close_connection = True
                return
            if self.path == "/tokenize":
                if "messages" in body and not fake.chat:
                    self.send({"error": "no chat template"}, 400)
                    return
                text = body.get("prompt")
                if text is None:
                    text = "".join(f"<{m['role']}>{m['content']}" for m in body["messages"]) + "<assistant>"
                self.send({"tokens": [ord(c) for c in text], "count": len(text)})
            elif self.path == "/detokenize":
                self.send({"prompt": "".join(map(chr, body["tokens"]))})
            elif fake.refuse:
                self.send({"error": {"message": "no such thing"}}, fake.refuse)
            else:
                self._stream(body)

        def _stream(self, body: dict[str, Any]) -> None:
            fake.bodies.append(body)
            tokens = body["max_tokens"]
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for _ in range(max(1, tokens // 2)):
                self._event({"choices": [{"text": "xx", "finish_reason": None}]})
            fake.answer(body["prompt"], tokens)
            self._event(
                {"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}}
            )
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, value: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
            self.wfile.flush()

    with served(Handler) as fake.url:
        yield fake
