"""A server that answers as vLLM would, with a real tokenizer and no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.json_pages import JsonPages, served
from tests.live.server import metrics


@dataclass
class Answering:
    """State of the server; tests change it while it runs.

    Attributes:
        tokenizer: its transformers tokenizer.
        reply: what it answers to everything.
        shift: added to all ids, as another vocabulary would.
        tells_ids: whether it knows ``return_token_ids``.
        most: answers after which it drops connections.
        refuses: text of prompts that it refuses.
        metrics: text of ``/metrics``.
        bodies: requests, by path.
    """

    tokenizer: Any
    reply: str = "token token"
    shift: int = 0
    tells_ids: bool = True
    most: int = 1 << 30
    refuses: str = "\0"
    metrics: str = field(default_factory=metrics)
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return [i + self.shift for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def ids(self) -> list[int]:
        """Token ids of an answer."""
        return [*self.encode(self.reply), self.tokenizer.convert_tokens_to_ids("<|im_end|>")]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a completion of either kind."""
        said = {"message": {"content": self.reply}} if "chat" in path else {"text": self.reply}
        choice = {**said, "finish_reason": "stop"}
        if self.tells_ids and body.get("return_token_ids"):
            choice["token_ids"] = self.ids()
        return {"choices": [choice], "usage": {"completion_tokens": len(self.ids())}}


@contextmanager
def answering(tokenizer: Any, **state: Any) -> Iterator[Answering]:
    """Serve until the block ends."""
    server_state = Answering(tokenizer, **state)

    class Handler(JsonPages):
        def get(self) -> None:
            pages: dict[str, Any] = {
                "/metrics": server_state.metrics,
                "/version": {"version": "0.33.0"},
                "/v1/models": {"data": [{"id": "/models/made", "max_model_len": 1024}]},
            }
            self.send(pages.get(self.path, ""), 200 if self.path in pages else 404)

        def post(self, body: dict[str, Any]) -> None:
            if self.path == "/tokenize":
                ids = server_state.encode(body.get("prompt", "messages"))
                self.send({"tokens": ids, "count": len(ids)})
                return
            if server_state.refuses in json.dumps(body):
                self.send({"error": {"message": "the prompt is too long"}}, 400)
            elif len(server_state.bodies) >= server_state.most:
                self.close_connection = True
            else:
                server_state.bodies.append((self.path, body))
                self.send(server_state.answer(self.path, body))

    with served(Handler) as server_state.url:
        yield server_state
