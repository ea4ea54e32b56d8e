"""Batches under way: every line of an input file is a request to this server; what it answers is a line of the output.

A batch's state and its lines so far stand on disk: a server that starts again goes on where the last one ended, and no
line is answered twice. Lines run beside each other and behind interactive requests (priority 1), as requests of the
tenant that began the batch and who alone sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from octavo import logs
from octavo.errors import InvalidRequest, NotFound, OctavoError
from octavo.server.limits import check_depth
from octavo.server.openai.files import OWNER, FileStore, newest_first, shown
from octavo.server.tenants import Tenant
from octavo.server.whole_file import write

ENDPOINTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/score",
)  # fmt: skip
AT_ONCE = 32  # lines of one batch
MAX_LINES = 50_000
MAX_ERRORS = 100  # that a failed validation lists
WINDOW_SECONDS = 24 * 3600
PRIORITY = 1  # behind the default of 0
BUSY = (429, 503)  # a line waits and asks again
RETRY_SECONDS = 1.0
_OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_ID = re.compile(r"batch_[0-9a-f]{32}")
Answer = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]  # tenant's name, path, body -> status, body
log = logs.get("server")


class Batches:
    """Those of one folder. answer: asks this server."""

    def __init__(self, folder: Path, files: FileStore, answer: Answer) -> None:
        self._folder = folder
        self._files = files
        self._answer = answer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._live: dict[str, dict[str, Any]] = {}  # those that run, as they stand

    def resume(self) -> None:
        """Go on with what a server before this one left open."""
        for batch in self._kept():
            if batch["status"] in _OPEN:
                self._start(batch)

    async def stop(self) -> None:
        """Leave what is open to the next server."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def create(
        self, input_file: str, endpoint: str, window: str, metadata: dict[str, str] | None, tenant: Tenant
    ) -> dict[str, Any]:
        """A new batch, begun. Raises NotFound for a file that is not there."""
        self._files.get(input_file, tenant)
        now = int(time.time())
        batch = {
            "id": f"batch_{secrets.token_hex(16)}",
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": input_file,
            "completion_window": window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": None,
            "expires_at": now + WINDOW_SECONDS,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
            OWNER: tenant.name,
        }
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._save(batch)
        self._start(batch)
        return shown(batch)

    def all(self, tenant: Tenant) -> list[dict[str, Any]]:
        """Those that a tenant sees, the newest first."""
        return newest_first(self._kept(), tenant)

    def get(self, id_: str, tenant: Tenant) -> dict[str, Any]:
        """Raises NotFound, for one that is another's too."""
        return shown(self._found(id_, tenant))

    def _kept(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(each.read_bytes()) for each in self._folder.glob("batch_*.json")]

    def _found(self, id_: str, tenant: Tenant) -> dict[str, Any]:
        found = self._read(id_)
        if found is None or not tenant.sees(found.get(OWNER, "")):
            raise NotFound(f"No batch found with id '{id_[:100]}'.", param="id", code="batch_not_found")
        return found

    def _read(self, id_: str) -> dict[str, Any] | None:
        if id_ in self._live:
            return self._live[id_]
        try:
            if not _ID.fullmatch(id_):
                raise FileNotFoundError
            found: dict[str, Any] = msgspec.json.decode((self._folder / f"{id_}.json").read_bytes())
        except FileNotFoundError:
            return None
        return found

    def cancel(self, id_: str, tenant: Tenant) -> dict[str, Any]:
        """End it: what runs is aborted, what was answered is kept. A batch that has ended stays as it is."""
        batch = self._found(id_, tenant)
        if id_ in self._tasks and batch["status"] != "cancelling":
            self._mark(batch, "cancelling")
            self._tasks[id_].cancel()
        return shown(batch)

    def _save(self, batch: dict[str, Any]) -> None:
        write(self._folder / f"{batch['id']}.json", msgspec.json.encode(batch))

    def _mark(self, batch: dict[str, Any], status: str) -> None:
        batch["status"] = status
        batch[f"{status}_at"] = int(time.time())
        self._save(batch)

    def _start(self, batch: dict[str, Any]) -> None:
        def ended(_: asyncio.Task[None]) -> None:
            del self._tasks[batch["id"]], self._live[batch["id"]]

        task = asyncio.create_task(self._run(batch), name="octavo-batch")
        self._tasks[batch["id"]], self._live[batch["id"]] = task, batch
        task.add_done_callback(ended)

    # -- the work ----------------------------------------------------------------------------------------------------

    async def _run(self, batch: dict[str, Any]) -> None:
        try:
            await self._work(batch)
        except asyncio.CancelledError:
            if batch["status"] != "cancelling":
                raise  # the server ends
            self._finish(batch, "cancelled")
        except Exception as error:
            log.exception("a batch failed")
            words = error.message if isinstance(error, OctavoError) else "The server failed; its log says why."
            batch["errors"] = _errors([_fault("server_error", None, words)])
            self._mark(batch, "failed")

    async def _work(self, batch: dict[str, Any]) -> None:
        if batch["status"] == "cancelling":
            self._finish(batch, "cancelled")
            return
        path = self._files.path(batch["input_file_id"])
        lines, faults = await asyncio.to_thread(read_lines, path, batch["endpoint"])
        if faults:
            batch["errors"] = _errors(faults)
            self._mark(batch, "failed")
            return
        if batch["status"] == "validating":
            batch["request_counts"]["total"] = len(lines)
            self._mark(batch, "in_progress")
        known = set(self._known(batch))
        room = asyncio.Semaphore(AT_ONCE)
        waiting: set[asyncio.Task[None]] = set()
        expired = False
        try:
            for line in lines:
                if line["custom_id"] in known:
                    continue
                if expired := time.time() > batch["expires_at"]:
                    break
                await room.acquire()
                task = asyncio.create_task(self._line(batch, line))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
                task.add_done_callback(lambda _: room.release())
            await asyncio.gather(*waiting)
        finally:
            for task in waiting:
                task.cancel()
        self._finish(batch, "expired" if expired else "completed")

    async def _line(self, batch: dict[str, Any], line: dict[str, Any]) -> None:
        body = msgspec.json.encode({"priority": PRIORITY, **line["body"], "stream": False})
        owner = batch.get(OWNER, "")
        status, answer = await self._answer(owner, line["url"], body)
        while status in BUSY:
            await asyncio.sleep(RETRY_SECONDS)
            status, answer = await self._answer(owner, line["url"], body)
        token = secrets.token_hex(12)
        told = {
            "id": f"batch_req_{token}",
            "custom_id": line["custom_id"],
            "response": {"status_code": status, "request_id": token, "body": msgspec.Raw(answer)},
            "error": None,
        }
        right = status == 200
        with self._part(batch, right).open("ab") as file:
            file.write(msgspec.json.encode(told) + b"\n")
        batch["request_counts"]["completed" if right else "failed"] += 1
        self._save(batch)

    def _part(self, batch: dict[str, Any], right: bool) -> Path:
        return self._folder / f"{batch['id']}.{'output' if right else 'errors'}"

    def _known(self, batch: dict[str, Any]) -> Iterator[str]:
        """custom_id of the lines that are answered. A line that a death left half is cut off; counts are made anew."""
        counts = batch["request_counts"]
        for name, right in (("completed", True), ("failed", False)):
            path = self._part(batch, right)
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                write(path, whole)
            answered = [msgspec.json.decode(each)["custom_id"] for each in whole.splitlines()]
            counts[name] = len(answered)
            yield from answered

    def _finish(self, batch: dict[str, Any], status: str) -> None:
        """Make files of what there is."""
        if status == "completed":
            self._mark(batch, "finalizing")
        for name, right in (("output", True), ("error", False)):
            path = self._part(batch, right)
            if path.exists():
                filename, owner = f"{batch['id']}_{name}.jsonl", batch.get(OWNER, "")
                made = self._files.add(path.read_bytes(), filename, "batch_output", owner)
                batch[f"{name}_file_id"] = made["id"]
        self._mark(batch, status)
        for right in (True, False):
            with contextlib.suppress(FileNotFoundError):
                self._part(batch, right).unlink()


def read_lines(path: Path, endpoint: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of an input file, and what is wrong with it."""
    lines: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    known: set[str] = set()
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        if not raw.strip():
            continue
        if len(faults) >= MAX_ERRORS:
            break
        try:
            line = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            faults.append(_fault("invalid_json_line", number, "This line is not valid JSON."))
            continue
        fault = _wrong(line, endpoint, known)
        if fault is not None:
            faults.append(_fault(fault[0], number, fault[1]))
            continue
        known.add(line["custom_id"])
        lines.append(line)
    if not lines and not faults:
        faults.append(_fault("empty_file", None, "The input file has no requests."))
    if len(lines) > MAX_LINES:
        faults.append(_fault("too_many_requests", None, f"The input file has more than {MAX_LINES} requests."))
    return lines, faults


def _wrong(line: Any, endpoint: str, known: set[str]) -> tuple[str, str] | None:
    """Code and message of what is wrong with a line."""
    if not isinstance(line, dict) or not isinstance(line.get("body"), dict):
        return "invalid_request", "A line must be an object with custom_id, method, url and body."
    try:
        check_depth(line["body"], "body")
    except InvalidRequest as error:
        return "invalid_request", error.message
    id_ = line.get("custom_id")
    if not isinstance(id_, str) or not id_:
        return "missing_required_parameter", "custom_id is missing."
    if id_ in known:
        return "duplicate_custom_id", f"The custom_id {id_[:60]!r} is given twice."
    if line.get("method") != "POST":
        return "invalid_method", "method must be POST."
    if line.get("url") != endpoint:
        return "mismatched_endpoint", f"url must be the batch's endpoint, {endpoint}."
    return None


def _fault(code: str, line: int | None, message: str) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": None}


def _errors(faults: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": faults}
