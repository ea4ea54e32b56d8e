"""Events without an engine: what a dialect makes of kinds of events that a small model gives rarely or never."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from octavo.request import FinishReason, Usage
from octavo.text.events import Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta

# Thinks, says a word, calls two functions at once.
CALLS: list[Event] = [
    ReasoningDelta(0, "Let me ", (1,)),
    ReasoningDelta(0, "look.", (2,)),
    TextDelta(0, "I ", (3,)),
    TextDelta(0, "ask.", (4,)),
    ToolCallDelta(0, 0, "call_a", "weather", "", (5,)),
    ToolCallDelta(0, 0, None, None, '{"city": ', (6,)),
    ToolCallDelta(0, 0, None, None, '"Ulm"}', (7,)),
    ToolCallDelta(0, 1, "call_b", "time", "", (8,)),
    TextDelta(0, "", (9,)),
    Finished(0, FinishReason.TOOL_CALLS),
]


class Told:
    """As much of an Answering as a shape reads."""

    def __init__(self, events: list[Event]) -> None:
        self.n = self.choices = 1
        self.generations: list[Any] = []
        tokens = sum(len(each.token_ids) for each in events if not isinstance(each, Finished))
        self.usage = Usage(20, tokens, 16, 2)
        self.seconds = (0.25, 0.5, 0.75)
        self.seed = 7


@contextlib.contextmanager
def answering(wire: bytes, content_type: str = "text/event-stream") -> Iterator[str]:
    """A server that answers whatever is posted with these bytes, so that a real client reads them; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(wire)))
            self.end_headers()
            self.wfile.write(wire)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
