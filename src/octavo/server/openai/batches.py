"""/v1/batches: make, show, list, cancel. How they run is batch_run.py's."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.server.openai.batch_run import ENDPOINTS, Batches
from octavo.server.openai.files import page
from octavo.server.submit import Front
from octavo.server.tenants import current

MAX_LISTED = 100
MAX_METADATA = 16


class BatchBody(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None


_BODY = msgspec.json.Decoder(BatchBody)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def batches(request: Request) -> Response:
    """POST: begin a batch. GET: those that there are."""
    front: Front = request.app.state.front
    runs: Batches = request.app.state.batches
    tenant = current().tenant
    if request.method == "GET":
        query = request.query_params
        found = await asyncio.to_thread(runs.all, tenant)
        return _json(page(found, query.get("after"), query.get("limit", "20"), MAX_LISTED))
    body: BatchBody = await front.body(request, _BODY)
    if body.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}.", param="endpoint")
    if len(body.metadata or ()) > MAX_METADATA:
        raise InvalidRequest(f"metadata: at most {MAX_METADATA} keys are accepted.", param="metadata")
    return _json(runs.create(body.input_file_id, body.endpoint, body.completion_window, body.metadata, tenant))


async def batch(request: Request) -> Response:
    """How far a batch is."""
    runs: Batches = request.app.state.batches
    return _json(runs.get(request.path_params["id"], current().tenant))


async def cancel_batch(request: Request) -> Response:
    """End a batch; what was answered is kept."""
    runs: Batches = request.app.state.batches
    return _json(runs.cancel(request.path_params["id"], current().tenant))
