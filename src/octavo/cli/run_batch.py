"""`octavo run-batch -i IN.jsonl -o OUT.jsonl [MODEL]`: a file of requests, answered; a second run goes on where the
first one ended.

The engine is a supervised process of its own, as behind a server: its death costs no request. With --url a running
server answers instead. The files are batch_file.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from octavo import logs
from octavo.cli.batch_file import Output, Place, parse, read_input
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, say
from octavo.cli.web import Address, ask
from octavo.config import EngineConfig, LogConfig, ServerConfig, TextConfig
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Settings, client_environment

if TYPE_CHECKING:
    from octavo.server.alone import Answer

BUSY = (429, 503)  # a line waits and asks again
RETRY_SECONDS = 1.0
AT_A_SERVER = 32  # lines at once where a server answers
Failure = Callable[[], Awaitable[OctavoError]]  # waits for the day when nothing will be answered any more


def run(
    settings: Settings,
    input_file: str | None,
    output_file: str | None,
    names: tuple[str, ...],
    any_model_name: bool,
    overwrite: bool,
    max_concurrency: int | None,
    url: str | None,
) -> int:
    """Answer what is not answered yet; 1 if an answer is an error."""
    if input_file is None or output_file is None:
        flag = "--input-file" if input_file is None else "--output-file"
        raise ConfigError("octavo run-batch -i IN.jsonl -o OUT.jsonl [MODEL]: both files are needed.", flag=flag)
    wanted = read_input(Path(input_file).expanduser())
    output = Output(Path(output_file).expanduser(), wanted, overwrite)
    left = [id_ for id_ in wanted if id_ not in output.known]
    say(f"{len(wanted):,} requests, {len(output.known):,} of them answered before")
    if output.again:
        say(f"{output.again:,} are asked again: their answers were errors of the server")
    server = ServerConfig(served_model_name=names, any_model_name=any_model_name)
    width = max_concurrency or (AT_A_SERVER if url else settings.engine.max_num_seqs)
    try:
        if left:
            opened = remote(url, client_environment().api_key) if url else alone(settings, server)
            asyncio.run(_work(opened, Path(input_file).expanduser(), {id_: wanted[id_] for id_ in left}, output, width))
        output.in_order(wanted)
    finally:
        output.close()
        if len(output.known) < len(wanted):
            say(f"{len(output.known):,} of {len(wanted):,} are answered; the same command goes on with the others")
    click.echo(f"{len(wanted) - output.failed:,} answered, {output.failed:,} failed: {output.path}")
    return 1 if output.failed else 0


async def _work(
    opened: contextlib.AbstractAsyncContextManager[tuple[Answer, Failure]],
    path: Path,
    left: dict[str, Place],
    output: Output,
    width: int,
) -> None:
    """Ask `width` lines at a time. Raises what ends the engine for good."""
    progress = Progress(client_environment().plain, counted="requests")
    async with opened as (answer, failure):
        waiting = iter(left.values())
        done = 0
        with path.open("rb") as file:

            async def one_after_another() -> None:
                nonlocal done
                for place in waiting:  # shared by all of these
                    line = parse(place.read(file))
                    body = msgspec.json.encode({**line.body, "stream": False})
                    output.add(line.custom_id, *await _patiently(answer, line.url, body))
                    done += 1
                    progress.report("batch", done, len(left))

            work: asyncio.Future[Any] = asyncio.gather(*(one_after_another() for _ in range(min(width, len(left)))))
            end: asyncio.Future[Any] = asyncio.ensure_future(failure())
            try:
                await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise end.result()
                work.result()
            finally:
                end.cancel()
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                progress.close()


async def _patiently(answer: Answer, url: str, body: bytes) -> tuple[int, bytes]:
    """An answer that is not "busy"."""
    status, made = await answer(url, body)
    while status in BUSY:
        await asyncio.sleep(RETRY_SECONDS)
        status, made = await answer(url, body)
    return status, made


@contextlib.asynccontextmanager
async def alone(settings: Settings, server: ServerConfig) -> AsyncIterator[tuple[Answer, Failure]]:
    """An engine of our own."""
    from octavo.server.alone import answerer
    from octavo.server.run import Backend
    from octavo.shelf import Shelf
    from octavo.start import start_served

    logs.set_up("warning" if settings.log.log_level == "info" else settings.log.log_level)
    progress = Progress(client_environment().plain)
    try:
        served = await start_served(settings, progress.report)
    finally:
        progress.close()
    supervisor, files = served.supervisor, served.files
    names = server.served_model_name or files.names
    for line in served.llm.info.summary:
        say(f"  {line}")
    backend = Backend(
        served.llm, names, Shelf(files.path, settings.engine), lambda: supervisor.healthy, supervisor.stop,
        supervisor.failure, files.names,
    )  # fmt: skip
    try:
        yield answerer(backend, server), supervisor.failure
    finally:
        if served.llm.renderer is not None:
            served.llm.renderer.close()
        await supervisor.stop()


@contextlib.asynccontextmanager
async def remote(url: str, key: str | None) -> AsyncIterator[tuple[Answer, Failure]]:
    """A server that runs."""
    address = Address.of(url)

    async def answer(path: str, body: bytes) -> tuple[int, bytes]:
        made = await ask(address, "POST", path, body, key=key, seconds=24 * 3600.0)
        return made.status, made.body

    async def never() -> OctavoError:
        await asyncio.Event().wait()
        raise AssertionError

    found = await ask(address, "GET", "/v1/models", key=key, seconds=10.0)
    if found.status != 200:
        raise OctavoError(f"{address} answers {found.status}: {found.message}")
    yield functools.partial(answer), never


command = OptionCommand(
    "run-batch",
    run,
    "Answer a file of requests in OpenAI's batch format (custom_id, method, url, body: one JSON object a line). A "
    "second run with the same files goes on where the first one ended. Exit code 1 if an answer is an error.",
    nouns=(EngineConfig, TextConfig, LogConfig),
    own=[
        click.Option(["--input-file", "-i"], metavar="FILE", help="the requests, a JSON object a line"),
        click.Option(["--output-file", "-o"], metavar="FILE", help="the answers, in the order of the requests"),
        click.Option(["--served-model-name", "names"], multiple=True, metavar="NAME", help="what the requests call it"),
        click.Option(["--any-model-name"], is_flag=True, help="answer whatever model a request names"),
        click.Option(["--overwrite"], is_flag=True, help="begin anew although the output file exists"),
        click.Option(
            ["--max-concurrency"], type=click.IntRange(1), metavar="N", help="requests at once [--max-num-seqs]"
        ),
        click.Option(["--url"], metavar="URL", help="let this server answer (key: OPENAI_API_KEY)"),
    ],
)
