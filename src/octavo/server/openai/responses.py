"""/v1/responses: create (body, stream, in the background), retrieve, cancel, delete, input items, input tokens.

Responses are kept unless `store` is false, so that the next request can go on from them; see response_store.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo import logs
from octavo.errors import InvalidRequest, OctavoError
from octavo.flow import items as flowing
from octavo.request import ChatRequest, FinishReason
from octavo.server.conversation import answer_headers, converse, prompt_ids
from octavo.server.dialect import OPENAI
from octavo.server.limits import check_depth
from octavo.server.openai import response_body
from octavo.server.openai.response_body import BODY, ResponseFields, items_of, messages_of
from octavo.server.openai.response_items import Items, encode
from octavo.server.openai.response_store import Kept, ResponseStore
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Answering, Front
from octavo.server.tenants import current
from octavo.server.translated import Translated
from octavo.text.events import Event

MAX_LISTED = 100
MAX_METADATA = 16
log = logs.get("server")


async def responses(request: Request) -> Response | EventStream:
    """Answer input items."""
    front, store = _of(request)
    body: ResponseFields = await front.body(request, BODY)
    front.check_model(body.model)
    _check(body)
    made = _Made(front, store, body)
    if body.background:
        return _json(await made.begun())
    if body.stream:  # looks itself whether the client is there
        source = Translated(await made.answer(), made.pieces, made.last)
        return source.stream(front, request, made.id, made.idle, OPENAI)
    async with while_connected(request.receive):
        answering = await made.answer()
        async for batch in flowing(answering):
            for _, events in batch:
                made.items.take(events)
        return Response(
            encode(made.finished()), headers=answer_headers(front, answering), media_type="application/json"
        )


async def response(request: Request) -> Response:
    """GET: a response that was kept. DELETE: forget it."""
    _, store = _of(request)
    id_: str = request.path_params["id"]
    if request.method == "DELETE":
        store.delete(id_, current().tenant)
        return _json({"id": id_, "object": "response", "deleted": True})
    return _json(store.get(id_, current().tenant).response)


async def cancel_response(request: Request) -> Response:
    """End a response that is made in the background."""
    _, store = _of(request)
    kept = store.get(request.path_params["id"], current().tenant)
    if not kept.response["background"]:
        raise InvalidRequest("Only responses with background: true can be cancelled.", param="id")
    if kept.running is not None:
        kept.running.cancel()
        await asyncio.wait([kept.running])
    return _json(kept.response)


async def input_items(request: Request) -> Response:
    """The items that a response was asked with, the newest first unless `order=asc`."""
    _, store = _of(request)
    found = store.get(request.path_params["id"], current().tenant).items
    query = request.query_params
    limit = query.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit) <= MAX_LISTED:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_LISTED}.", param="limit")
    listed = found if query.get("order") == "asc" else found[::-1]
    if after := query.get("after"):
        places = [place for place, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"after: there is no item {after[:100]!r}.", param="after")
        listed = listed[places[0] + 1 :]
    shown = listed[: int(limit)]
    return _json(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(listed) > len(shown),
        }
    )


async def input_tokens(request: Request) -> Response:
    """How many tokens the model would read."""
    front, store = _of(request)
    body: ResponseFields = await front.body(request, BODY)
    front.check_model(body.model)
    _check(body)
    ids = await prompt_ids(front, _Made(front, store, body).chat())
    return _json({"object": "response.input_tokens", "input_tokens": len(ids)})


def _of(request: Request) -> tuple[Front, ResponseStore]:
    return request.app.state.front, request.app.state.responses


def _json(value: object) -> Response:
    return Response(encode(value), media_type="application/json")


def _check(body: ResponseFields) -> None:
    """InvalidRequest for what is malformed, before any work; what is kept is written as JSON, as deep as it is."""
    for name in ("input", "tools", "tool_choice"):
        check_depth(getattr(body, name), name)
    check_depth(body.text and body.text.format, "text.format")
    if body.background and (body.store is False or body.stream):
        raise InvalidRequest("background needs store, and is not streamed.", param="background")
    if len(body.metadata or ()) > MAX_METADATA:
        raise InvalidRequest(f"metadata: at most {MAX_METADATA} keys are accepted.", param="metadata")


class _Made:
    """One response while it is made."""

    def __init__(self, front: Front, store: ResponseStore, body: ResponseFields) -> None:
        """Raises InvalidRequest for a previous_response_id that is not kept."""
        self._front = front
        self._store = store
        self._body = body
        self._given = [_with_id(item) for item in items_of(body)]
        self._tenant = current().tenant
        before = store.before(body.previous_response_id, self._tenant) if body.previous_response_id else None
        known = before.conversation if before else []
        self._conversation = [*known, *(self._referred(item, known) for item in self._given)]
        params = response_body.sampling(front.llm, body)
        self.items = Items(params.logprobs, front.llm.tokenizer.token_bytes)
        self._params = params
        self._answering: Answering | None = None
        self._number = 0  # of the next event of the stream
        self._response = self._head()

    @staticmethod
    def _referred(item: dict[str, Any], known: list[dict[str, Any]]) -> dict[str, Any]:
        """The item that a reference names, where it is known."""
        if item.get("type") != "item_reference":
            return item
        return next((each for each in known if each["id"] == item["id"]), item)

    def chat(self) -> ChatRequest:
        """The conversation. InvalidRequest names the field."""
        return response_body.chat_request(self._front.llm, self._body, messages_of(self._conversation))

    async def answer(self) -> Answering:
        """The answer, not begun."""
        self._answering = await converse(self._front, self.chat())
        return self._answering

    # -- a stream ----------------------------------------------------------------------------------------------------

    def pieces(self, prompt: int, events: list[Event]) -> list[bytes]:
        """Events of the stream."""
        made = [] if self._number else [self._opening()]
        return made + [self._event(kind, fields) for kind, fields in self.items.take(events)]

    def idle(self) -> bytes:
        """Events that say that nothing is new."""
        return self._event("response.in_progress", {"response": self._response}) if self._number else self._opening()

    def _opening(self) -> bytes:
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._event(kind, {"response": self._response}) for kind in kinds)

    def last(self) -> bytes:
        """The complete response. Also where it is incomplete: helpers of clients wait for this word."""
        return self._event("response.completed", {"response": self.finished()})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        data = encode({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    # -- a body ------------------------------------------------------------------------------------------------------

    def finished(self) -> dict[str, Any]:
        """The complete response; it is kept from now on."""
        assert self._answering is not None
        cut = self.items.reason != FinishReason.STOP and self.items.reason != FinishReason.TOOL_CALLS
        known = self._answering.usage
        self._response.update(
            status="incomplete" if cut else "completed",
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=self.items.items,
            usage={
                "input_tokens": known.prompt_tokens,
                "input_tokens_details": {"cached_tokens": known.cached_tokens},
                "output_tokens": known.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": known.reasoning_tokens},
                "total_tokens": known.total_tokens,
            },
            seed=self._answering.seed,
        )
        if self._body.store is not False and (self._body.background is not True or self._store.has(self.id)):
            self._store.keep(self._kept())
        return self._response

    @property
    def id(self) -> str:
        return str(self._response["id"])

    def _kept(self, running: asyncio.Task[None] | None = None) -> Kept:
        conversation = [*self._conversation, *self.items.items]
        return Kept(self._response, self._given, conversation, running, self._tenant.name)

    def _head(self) -> dict[str, Any]:
        body, params = self._body, self._params
        return {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": bool(body.background),
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._front.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": msgspec.to_builtins(body.reasoning or response_body.ResponseReasoning()),
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool for tool in body.tools or () if tool.get("type") == "function"],
            "top_p": params.top_p,
            "top_logprobs": body.top_logprobs or 0,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
            "system_fingerprint": self._front.llm.client.info.fingerprint,
        }

    # -- in the background -------------------------------------------------------------------------------------------

    async def begun(self) -> dict[str, Any]:
        """Start to make it; the response as it stands."""
        answering = await self.answer()
        task = asyncio.create_task(self._run(answering), name="octavo-response")
        self._store.keep(self._kept(task))
        return self._response

    async def _run(self, answering: Answering) -> None:
        try:
            async for batch in flowing(answering):
                for _, events in batch:
                    self.items.take(events)
            self.finished()
        except asyncio.CancelledError:
            self._response["status"] = "cancelled"
        except Exception as error:
            if not isinstance(error, OctavoError):
                log.exception("a response failed")
            message = error.message if isinstance(error, OctavoError) else "The server failed; its log says why."
            self._response.update(status="failed", error={"code": "server_error", "message": message})


def _with_id(item: dict[str, Any]) -> dict[str, Any]:
    """Every kept item has an id."""
    if isinstance(item.get("id"), str):
        return item
    prefix = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}.get(item.get("type", ""), "msg")
    return {**item, "id": f"{prefix}_{secrets.token_hex(16)}", "type": item.get("type", "message")}
