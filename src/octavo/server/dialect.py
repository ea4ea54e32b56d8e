"""Whose API a path belongs to: how its errors are said, how its streams are kept alive and how they end when they
cannot go on.

It knows errors and bytes, no route; loading.py uses it before there is an application.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.errors import ModelNotServed, OctavoError

DONE = b"data: [DONE]\n\n"
Said = tuple[int, dict[str, Any]]  # status and body of an error

# Statuses for which Anthropic's API has a word of its own; others go by their class.
_ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_OVERLOADED = 529  # what that API answers where others say 503


@dataclass(frozen=True)
class Dialect:
    """One API's manners. said: an error and the request's id -> status and body. ending: what a stream that has begun
    ends with. ping: what fills silence; empty where the format has no comments, so that an idle piece does.
    """

    said: Callable[[OctavoError, str], Said]
    ending: Callable[[OctavoError], bytes]
    ping: bytes
    content_type: str = "text/event-stream; charset=utf-8"
    id_header: bytes = b""  # a second name of x-request-id


def _openai(error: OctavoError, request_id: str) -> Said:
    return error.status, error.to_openai()


def _openai_ending(error: OctavoError) -> bytes:
    return b"data: " + msgspec.json.encode(error.to_openai()) + b"\n\n" + DONE


def _anthropic(error: OctavoError, request_id: str) -> Said:
    kind = _ANTHROPIC.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    status = _OVERLOADED if error.status == 503 else error.status
    return status, {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


def _anthropic_ending(error: OctavoError) -> bytes:
    _, body = _anthropic(error, "")
    return b"event: error\ndata: " + msgspec.json.encode({"type": "error", "error": body["error"]}) + b"\n\n"


def _ollama(error: OctavoError, request_id: str) -> Said:
    if isinstance(error, ModelNotServed):  # clients look for these words
        return error.status, {"error": f"model '{error.name}' not found.{error.known}"}
    return error.status, {"error": error.message}


def _ollama_ending(error: OctavoError) -> bytes:
    return msgspec.json.encode({"error": error.message}) + b"\n"


OPENAI = Dialect(_openai, _openai_ending, b": ping\n\n")
ANTHROPIC = Dialect(_anthropic, _anthropic_ending, b": ping\n\n", id_header=b"request-id")
OLLAMA = Dialect(_ollama, _ollama_ending, b"", "application/x-ndjson")


def dialect_of(path: str) -> Dialect:
    """By a canonical path, whether there is such a route or not."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return ANTHROPIC
    if path.startswith("/api/") and not path.startswith("/api/v0/"):  # v0 is LM Studio's
        return OLLAMA
    return OPENAI
