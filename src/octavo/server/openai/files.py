"""/v1/files: files for batches and what they give, kept in a folder of the state directory, bounded in number and size.

A file is two: its bytes, and a JSON object that the API shows, with the name of the tenant whose it is, who alone sees
it. Both are written under another name first, so that a death leaves none half.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from octavo.errors import InvalidRequest, NotFound, OctavoError, Unavailable
from octavo.server.limits import read_body
from octavo.server.openai.multipart import parts_of
from octavo.server.submit import Front
from octavo.server.tenants import ANYONE, Tenant, current
from octavo.server.whole_file import write

MAX_FILE = 64 << 20  # bytes of one upload
MAX_FILES, MAX_BYTES = 4096, 4 << 30  # of all
MAX_LISTED = 10_000
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
OWNER = "owner"  # key of a kept object; "": made before there were keys
_ID = re.compile(r"file-[0-9a-f]{32}")


class FileStore:
    """The files of one folder, which is made when the first one comes. Calls touch the disk: make them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, data: bytes, filename: str, purpose: str, owner: str = "") -> dict[str, Any]:
        """A new file; its object. Raises OctavoError (413) when there is no room."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = self.all(ANYONE)
        if len(known) >= MAX_FILES or sum(each["bytes"] for each in known) + len(data) > MAX_BYTES:
            raise OctavoError("There is no room for more files; delete some.", status=413, type="invalid_request_error")
        made = {
            "id": f"file-{secrets.token_hex(16)}",
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        write(self.path(str(made["id"])), data)
        write(self._folder / f"{made['id']}.json", msgspec.json.encode({**made, OWNER: owner}))
        return made

    def all(self, tenant: Tenant) -> list[dict[str, Any]]:
        """Objects of those that a tenant sees, the newest first."""
        every = [msgspec.json.decode(each.read_bytes()) for each in self._folder.glob("file-*.json")]
        return newest_first(every, tenant)

    def get(self, id_: str, tenant: Tenant) -> dict[str, Any]:
        """Raises NotFound, for one that is another's too."""
        try:
            found: dict[str, Any] = msgspec.json.decode(self.path(id_).with_suffix(".json").read_bytes())
        except FileNotFoundError:
            raise _missing(id_) from None
        if not tenant.sees(found.get(OWNER, "")):
            raise _missing(id_)
        return shown(found)

    def path(self, id_: str) -> Path:
        """Where its bytes are. Raises NotFound for what is no id."""
        if not _ID.fullmatch(id_):
            raise _missing(id_)
        return self._folder / id_

    def delete(self, id_: str, tenant: Tenant) -> None:
        """Raises NotFound."""
        self.get(id_, tenant)
        self.path(id_).with_suffix(".json").unlink(missing_ok=True)
        self.path(id_).unlink(missing_ok=True)


def shown(kept: dict[str, Any]) -> dict[str, Any]:
    """What the API shows of a kept object."""
    return {name: value for name, value in kept.items() if name != OWNER}


def newest_first(every: list[dict[str, Any]], tenant: Tenant) -> list[dict[str, Any]]:
    """Those kept objects that a tenant sees, as the API shows them."""
    found = [shown(each) for each in every if tenant.sees(each.get(OWNER, ""))]
    return sorted(found, key=lambda each: (-each["created_at"], each["id"]))


def _missing(id_: str) -> NotFound:
    return NotFound(f"No such File object: {id_[:100]}", param="id", code="file_not_found")


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def files(request: Request) -> Response:
    """POST: upload a file (multipart). GET: those that are there."""
    store: FileStore = request.app.state.files
    if request.method == "GET":
        return await _listed(request, store)
    front: Front = request.app.state.front
    if front.health.draining:
        raise Unavailable("The server is shutting down.", retry_after=10.0)
    body = await read_body(request.stream(), request.headers, MAX_FILE)
    parts = await asyncio.to_thread(parts_of, body, request.headers.get("content-type", ""))
    file, purpose = parts.get("file"), parts.get("purpose")
    if file is None or file.filename is None:
        raise InvalidRequest("file is missing.", param="file")
    wanted = purpose.data.decode("utf-8", "replace") if purpose is not None else ""
    if wanted not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
    return _json(await asyncio.to_thread(store.add, file.data, file.filename, wanted, current().tenant.name))


async def _listed(request: Request, store: FileStore) -> Response:
    query = request.query_params
    found = await asyncio.to_thread(store.all, current().tenant)
    if purpose := query.get("purpose"):
        found = [each for each in found if each["purpose"] == purpose]
    if query.get("order") == "asc":
        found.reverse()
    return _json(page(found, query.get("after"), query.get("limit"), MAX_LISTED))


def page(found: list[dict[str, Any]], after: str | None, limit: str | None, most: int) -> dict[str, Any]:
    """A page of a list, as the API has it. InvalidRequest names the query."""
    if limit is not None and (not limit.isdecimal() or not 1 <= int(limit) <= most):
        raise InvalidRequest(f"limit must be a number from 1 to {most}.", param="limit")
    if after is not None:
        places = [place for place, each in enumerate(found) if each["id"] == after]
        if not places:
            raise InvalidRequest(f"after: there is no {after[:100]!r}.", param="after")
        found = found[places[0] + 1 :]
    shown = found[: int(limit) if limit else most]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(shown) < len(found),
    }


async def file(request: Request) -> Response:
    """GET: what is known of a file. DELETE: remove it."""
    store: FileStore = request.app.state.files
    id_: str = request.path_params["id"]
    if request.method == "DELETE":
        await asyncio.to_thread(store.delete, id_, current().tenant)
        return _json({"id": id_, "object": "file", "deleted": True})
    return _json(await asyncio.to_thread(store.get, id_, current().tenant))


async def file_content(request: Request) -> Response:
    """The bytes of a file."""
    store: FileStore = request.app.state.files
    id_: str = request.path_params["id"]
    await asyncio.to_thread(store.get, id_, current().tenant)
    return FileResponse(store.path(id_), media_type="application/octet-stream")
