"""A model's provider on loopback: OpenAI's and Anthropic's routes as their SDKs call them, with usage that is known.

Models: `cut` breaks the connection in the middle of a stream; `slow` takes ten seconds to the end of one; `failing`
answers 400. Everything asked is kept.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

#: 100 input tokens, 40 of them from a cache, 20 output tokens: as each API says it.
CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 40},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "output_tokens": 20,
    "total_tokens": 120,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens_details": {"reasoning_tokens": 0},
}
MESSAGES_USAGE = {"input_tokens": 60, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 5}
TEXT = "forty characters, which are ten tokens.."


class Provider(NamedTuple):
    url: str
    asked: list[dict[str, Any]]


def _chat(asked: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    about = {"id": "c1", "created": 0, "model": asked["model"]}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}
    whole = {**about, "object": "chat.completion", "choices": [choice], "usage": CHAT_USAGE}
    delta = {"index": 0, "delta": {"role": "assistant", "content": TEXT}, "finish_reason": None}
    pieces: list[dict[str, Any]] = [{**about, "object": "chat.completion.chunk", "choices": [delta]} for _ in range(2)]
    if asked.get("stream_options", {}).get("include_usage"):
        pieces.append({**about, "object": "chat.completion.chunk", "choices": [], "usage": CHAT_USAGE})
    return whole, pieces


def _responses(asked: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    message = {"id": "m1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole = {
        "id": "r1",
        "object": "response",
        "created_at": 0,
        "model": asked["model"],
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": RESPONSES_USAGE,
    }
    delta = {"type": "response.output_text.delta", "item_id": "m1", "output_index": 0, "content_index": 0}
    pieces = [{**delta, "delta": TEXT, "sequence_number": number, "logprobs": []} for number in range(2)]
    return whole, [*pieces, {"type": "response.completed", "sequence_number": 2, "response": whole}]


def _messages(asked: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    about = {"id": "m1", "type": "message", "role": "assistant", "model": asked["model"], "stop_sequence": None}
    text = {"type": "text", "text": TEXT}
    usage = {**MESSAGES_USAGE, "output_tokens": 20}
    whole = {**about, "content": [text], "stop_reason": "end_turn", "usage": usage}
    started = {**about, "content": [], "stop_reason": None, "usage": {**MESSAGES_USAGE, "output_tokens": 1}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
    return whole, [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        delta,
        delta,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
    ]


_ROUTES = {"/v1/chat/completions": _chat, "/v1/responses": _responses, "/v1/messages": _messages}


class _Handler(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        whole, pieces = _ROUTES[self.path](body)
        if body["model"] == "failing":
            self.say(400, {"error": {"type": "invalid_request_error", "message": "no such model"}})
        elif body.get("stream"):
            with contextlib.suppress(ConnectionError):  # it was left
                self.stream(pieces, cut=body["model"] == "cut", slow=body["model"] == "slow")
        else:
            self.say(200, whole)

    def say(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: list[dict[str, Any]], *, cut: bool, slow: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        if cut:
            self.send_header("content-length", "1000000")  # more than will come
        self.end_headers()
        if slow:
            pieces = [pieces[0]] * 200 + pieces[1:]
        for piece in pieces[: -2 if len(pieces) > 3 else -1] if cut else pieces:
            name = f"event: {piece['type']}\n" if "type" in piece else ""
            self.wfile.write(f"{name}data: {json.dumps(piece)}\n\n".encode())
            time.sleep(0.05 if slow else 0)
        if not cut and self.path == "/v1/chat/completions":
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def fake_provider() -> Iterator[Provider]:
    asked: list[dict[str, Any]] = []
    handler = type("Handler", (_Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Provider(f"http://127.0.0.1:{server.server_address[1]}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
