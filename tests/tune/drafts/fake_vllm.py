"""``vllm serve`` as its clients see it: a process with the endpoints, the streams and the counters, and no model.

Tokens are characters. A step takes ``step_ms`` and ``draft_ms`` more a draft; step ``k`` of an answer accepts
``k % (drafts + 1)`` of them. ``FAKE_VLLM`` (JSON) sets these, and what goes wrong; each completion is a line of the
file ``log``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SET: dict[str, Any] = {"step_ms": 2.0, "draft_ms": 0.0, **json.loads(os.environ.get("FAKE_VLLM", "{}"))}
ARGUMENTS = sys.argv[2:]
LOCK = threading.Lock()


def flag(name: str, default: str) -> str:
    return ARGUMENTS[ARGUMENTS.index(name) + 1] if name in ARGUMENTS else default


DRAFTS = int(json.loads(flag("--speculative-config", "{}")).get("num_speculative_tokens", 0))
LENGTH = int(flag("--max-model-len", "8192"))
COUNTS = {"drafts": 0, "proposed": 0, "positions": [0] * DRAFTS, "served": 0, "now": 0}


def prompt_text(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return str(body["prompt"])
    return "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])


class Handler(BaseHTTPRequestHandler):
    # As vLLM's own server: else small parts of a stream wait for the client's acknowledgement, up to 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Not on stderr."""

    def _json(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json({"data": [{"id": ARGUMENTS[0], "max_model_len": LENGTH}]})
        elif self.path == "/metrics":
            if SET.get("die_at_metrics"):
                os._exit(3)
            label = '{engine="0",model_name="m"'
            name = "vllm:spec_decode_num_"
            lines = ["# HELP nothing"]
            if DRAFTS:
                lines += [
                    f"{name}drafts_total{label}}} {COUNTS['drafts']}.0",
                    f"{name}drafts_created{label}}} 1.79e+09",
                    f"{name}draft_tokens_total{label}}} {COUNTS['proposed']}.0",
                    f"{name}accepted_tokens_total{label}}} {sum(COUNTS['positions'])}.0",
                ]
                for at, count in enumerate(COUNTS["positions"]):
                    lines.append(f'{name}accepted_tokens_per_pos_total{label},position="{at}"}} {count}.0')
            data = "\n".join(lines).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            self._json({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            ids = [ord(c) for c in prompt_text(body)]
            self._json({"count": len(ids), "tokens": ids})
        elif self.path == "/detokenize":
            self._json({"prompt": "".join(map(chr, body["tokens"]))})
        else:
            self._complete(body)

    def _complete(self, body: dict[str, Any]) -> None:
        with LOCK:
            COUNTS["served"] += 1
            COUNTS["now"] += 1
            number, now = COUNTS["served"], COUNTS["now"]
        if "log" in SET:
            entry = {
                "drafts": DRAFTS,
                "in_flight": now,
                "path": self.path,
                "arguments": ARGUMENTS,
                "body": body,
            }
            with LOCK, open(SET["log"], "a") as log:  # noqa: PTH123
                log.write(json.dumps({**entry, "pid": os.getpid()}) + "\n")
        if number > SET.get("die_after", 1 << 30) and SET.get("die_with", DRAFTS) == DRAFTS:
            os._exit(3)
        if number in SET.get("refuse", ()):
            self._json({"error": {"message": "no such thing", "code": 400}}, 400)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._stream(body, "messages" in body)

    def _stream(self, body: dict[str, Any], chat: bool) -> None:
        tokens, step, limit = 0, 0, min(SET.get("stop_after", 1 << 30), body["max_tokens"])
        if chat:
            self._event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        while tokens < limit:
            time.sleep((SET["step_ms"] + DRAFTS * SET["draft_ms"]) / 1e3)
            accepted = step % (DRAFTS + 1) if step else 0
            if step:
                with LOCK:
                    COUNTS["drafts"] += 1
                    COUNTS["proposed"] += DRAFTS
                    for at in range(accepted):
                        COUNTS["positions"][at] += 1
            step += 1
            text = "x" * min(1 + accepted, limit - tokens)
            tokens += len(text)
            reason = "length" if tokens == limit else None
            part = {"delta": {"content": text}} if chat else {"text": text}
            self._event({"choices": [{**part, "finish_reason": reason}]})
        # Before the client can know that it is over, and ask again.
        with LOCK:
            COUNTS["now"] -= 1
        if SET.get("no_usage"):
            return
        usage = {"prompt_tokens": len(prompt_text(body)), "completion_tokens": tokens}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


if __name__ == "__main__":
    if SET.get("no_start_with") == DRAFTS:
        sys.exit("ValueError: not enough memory for that many drafts")
    ThreadingHTTPServer.request_queue_size = 64
    ThreadingHTTPServer(("127.0.0.1", int(flag("--port", "0"))), Handler).serve_forever()
