"""A stand-in for a judge's endpoint: an OpenAI-compatible server on this machine that fails as real ones do."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | dict[str, Any] | None
"""A text, an HTTP state, a whole reply (with its state under `state`), or null: the connection is cut."""


class Server:
    """`answer` makes a reply out of a question."""

    def __init__(self, answer: Callable[[str], Reply]):
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                said = answer(body["messages"][0]["content"]) if self.path == "/v1/chat/completions" else 404
                whole = dict(said) if isinstance(said, dict) else {}
                self.send_response(said if isinstance(said, int) else whole.pop("state", 200))
                if said is None:  # more is promised than comes
                    self.send_header("Content-Length", "1000")
                self.end_headers()
                text = {"choices": [{"message": {"content": said}}]} if isinstance(said, str) else {"error": "no"}
                self.wfile.write(b'{"cho' if said is None else json.dumps(whole or text).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """From now on nobody answers at this address."""
        self.server.shutdown()
        self.server.server_close()
