"""What is served, in Ollama's words: tags, show, ps, version; and pull, delete and copy of models on this machine.

A server has one model: what is pulled is there for the next start. A copy is a second name until the server ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo import logs
from octavo.errors import InvalidRequest, OctavoError
from octavo.server.dialect import OLLAMA
from octavo.server.limits import check_text
from octavo.server.ollama.chat import as_json
from octavo.server.ollama.lines import line
from octavo.server.sse import EventStream, while_connected
from octavo.server.submit import Front
from octavo.shelf import Description

VERSION = "0.13.0"  # of the Ollama whose answers these are: clients switch features by it
FOREVER = "2318-01-01T00:00:00Z"  # when a model that stays is said to go
MAX_NAMES = 64  # that copies add
log = logs.get("server")


class OllamaModelBody(msgspec.Struct):
    model: str | None = None
    name: str | None = None  # the older name of the same
    stream: bool | None = None
    verbose: bool | None = None
    insecure: bool | None = None


class OllamaCopyBody(msgspec.Struct):
    source: str
    destination: str


_MODEL = msgspec.json.Decoder(OllamaModelBody)
_COPY = msgspec.json.Decoder(OllamaCopyBody)


async def version(request: Request) -> Response:
    """The version of Ollama that clients may count on."""
    return as_json({"version": VERSION})


async def tags(request: Request) -> Response:
    """The names of the model."""
    front: Front = request.app.state.front
    return as_json({"models": [await _entry(front, name) for name in front.names]})


async def ps(request: Request) -> Response:
    """The model that is loaded."""
    front: Front = request.app.state.front
    more = {"expires_at": FOREVER, "size_vram": 0, "context_length": front.llm.client.info.max_model_len}
    entry = {name: value for name, value in (await _entry(front, front.model)).items() if name != "modified_at"}
    return as_json({"models": [{**entry, **more}]})


async def show(request: Request) -> Response:
    """What the model is."""
    front: Front = request.app.state.front
    body: OllamaModelBody = await front.body(request, _MODEL)
    name = _given(body)
    front.check_model(name)
    found = await front.shelf.description()
    parameters = [f"{key:<30} {value:g}" for key, value in found.sampling.items()]
    parameters += [f'{"stop":<30} "{each}"' for each in found.stop]
    template, text = found.template or "", "\n".join(parameters)
    made: dict[str, Any] = {
        "modelfile": "\n".join([f"FROM {name}", f'TEMPLATE """{template}"""', *(f"PARAMETER {p}" for p in parameters)]),
        "parameters": text,
        "template": template,
        "license": found.license or "",
        "details": _details(found),
        "model_info": _model_info(found, front.llm.client.info.max_model_len),
        "capabilities": _capabilities(front, found),
        "modified_at": await front.shelf.modified(),
    }
    if body.verbose:
        made["tensors"] = [
            {"name": each.name, "type": each.format, "shape": list(each.shape)} for each in found.tensors.values()
        ]
    return as_json(made)


def _given(body: OllamaModelBody) -> str:
    name = body.model or body.name
    if not name:
        raise InvalidRequest("model is required.", param="model")
    return name


async def _entry(front: Front, name: str) -> dict[str, Any]:
    found = await front.shelf.description()
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": await front.shelf.modified(),
        "size": found.nbytes,
        "digest": await front.shelf.digest(),
        "details": _details(found),
    }


def _details(found: Description) -> dict[str, Any]:
    number = found.parameters
    size = f"{number / 1e9:.1f}B" if number >= 10**9 else f"{number / 1e6:.2f}M"
    return {
        "parent_model": "",
        "format": found.kind,
        "family": found.architecture,
        "families": [found.architecture],
        "parameter_size": size,
        "quantization_level": found.quantization,
    }


def _model_info(found: Description, context: int) -> dict[str, Any]:
    """Keys of GGUF. The context is the one that is served: clients fill it."""
    kept = found.metadata if found.kind == "gguf" else {}
    name = found.architecture
    shape = {
        "embedding_length": found.shape.get("embedding length"),
        "block_count": found.shape.get("layers"),
        "attention.head_count": found.shape.get("heads"),
        "attention.head_count_kv": found.shape.get("KV heads"),
    }
    return {
        **kept,
        "general.architecture": name,
        "general.parameter_count": found.parameters,
        **{f"{name}.{key}": number for key, number in shape.items() if number},
        f"{name}.context_length": context,
    }


def _capabilities(front: Front, found: Description) -> list[str]:
    if front.llm.client.info.vector:
        return ["embedding"]
    return [each for each in found.capabilities if each != "embedding"] or ["completion"]


# -- what changes something --------------------------------------------------------------------------------------------


async def copy(request: Request) -> Response:
    """A second name for the model, until the server ends."""
    front: Front = request.app.state.front
    body: OllamaCopyBody = await front.body(request, _COPY)
    front.check_model(body.source)
    check_text(body.destination, "destination")
    if not body.destination or not body.destination.isprintable():
        raise InvalidRequest("destination must be a name.", param="destination")
    if body.destination not in front.names:
        if len(front.names) >= MAX_NAMES:
            raise InvalidRequest(f"there are {MAX_NAMES} names already.", param="destination")
        front.names = (*front.names, body.destination)
    return Response(b"")


async def delete(request: Request) -> Response:
    """Remove a downloaded model from this machine; not the one that is served."""
    front: Front = request.app.state.front
    body: OllamaModelBody = await front.body(request, _MODEL)
    name = _given(body)
    if name in {*front.names, *front.aliases}:
        raise InvalidRequest(f"{name[:200]} is being served; stop the server first.", param="model")
    try:
        await asyncio.to_thread(front.shelf.remove, name)
    except OSError as error:
        raise OctavoError(f"{name[:200]} could not be removed: {error.strerror}.") from error
    return Response(b"")


async def pull(request: Request) -> Response | EventStream:
    """Download a model, with its progress line by line. The model that is served is there already."""
    front: Front = request.app.state.front
    body: OllamaModelBody = await front.body(request, _MODEL)
    source = Pulling(front, _given(body))
    if body.stream is not False:
        return EventStream(source, {}, front.config.sse_ping_interval, source.idle, OLLAMA)
    async with while_connected(request.receive):
        await source.fetch()
    return as_json({"status": "success"})


class Pulling:
    """A download as a Flow of lines. A client that leaves ends the lines, not the download."""

    def __init__(self, front: Front, name: str) -> None:
        self._front = front
        self._name = name
        self._told: dict[str, bytes] = {}  # the newest line of each part
        self._news: Callable[[], None] = lambda: None
        self._failure: OctavoError | None = None
        self._finished = self.done = False
        self._task: asyncio.Task[None] | None = None

    async def start(self, news: Callable[[], None]) -> None:
        self._news = news
        self._told[""] = line({"status": "pulling manifest"})
        self._task = asyncio.create_task(self._run(), name="octavo-pull")
        news()

    async def _run(self) -> None:
        try:
            await self.fetch()
        except OctavoError as error:
            self._failure = error
        except Exception:
            log.exception("a download failed")
            self._failure = OctavoError("The download failed; the server's log says why.")
        self._finished = True
        self._news()

    async def fetch(self) -> None:
        """Wait until the files are there. Raises ModelNotFound and what downloading raises."""
        front = self._front
        if self._name in {*front.names, *front.aliases}:
            return
        loop = asyncio.get_running_loop()

        def progress(stage: str, done: int, total: int) -> None:
            told = line({"status": f"pulling {stage}", "digest": stage, "total": total, "completed": done})
            loop.call_soon_threadsafe(self._came, stage, told)

        await asyncio.to_thread(front.shelf.fetch, self._name, progress)

    def _came(self, stage: str, told: bytes) -> None:
        self._told[stage] = told
        self._news()

    def take(self) -> bytes | None:
        made = b"".join(self._told.values())
        self._told.clear()
        if made:
            return made
        if self._failure is not None:
            raise self._failure
        if self._finished:
            self.done = True
            return b"".join(
                line({"status": each}) for each in ("verifying sha256 digest", "writing manifest", "success")
            )
        return None

    def idle(self) -> bytes:
        """A line that says nothing new."""
        return line({"status": "pulling manifest"})

    def close(self) -> None:
        pass
