"""`octavo serve`: a supervised engine behind the HTTP front, and what is printed until it is ready.

The life of the server (address, signals, drain) is server/run.py's; this file gives it the model and shows the summary.
It knows no route and no step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from octavo import __version__, logs
from octavo.cli.flags import OptionCommand, to_yaml
from octavo.cli.terminal import LogLines, Progress
from octavo.settings import Settings, client_environment

if TYPE_CHECKING:
    from octavo.async_llm import Renderer

LABEL = 10  # columns of the summary's first word
IGNORED = "ignored: "  # how cli/flags.py begins a notice of a flag without effect


def run(settings: Settings, print_config: bool) -> int:
    """Serve until told to end; the exit code. Raises what loading raises, AddressInUse, EngineDiedTooOften."""
    if print_config:
        click.echo(to_yaml(settings), nl=False)
        return 0
    from octavo.server.run import Backend, run_server  # --help and --print-config need not wait for it

    begin = time.monotonic()
    logs.set_up(settings.log.log_level, json_lines=settings.log.log_json)
    logs.say(f"octavo {__version__} · {settings.engine.model}")

    async def load(meanwhile: Callable[[], object]) -> Backend:
        from octavo.shelf import Shelf
        from octavo.start import start_served

        progress = Progress(client_environment().plain, LogLines() if logs.json_lines() else None)
        try:
            served = await start_served(settings, progress.report, meanwhile)
        finally:
            progress.close()
        names = tuple(dict.fromkeys(settings.server.served_model_name or served.files.names))
        for line in summary((*served.llm.info.summary, *template_line(served.llm.renderer)), settings):
            logs.say(line)
        supervisor = served.supervisor
        return Backend(
            served.llm, names, Shelf(served.files.path, settings.engine), lambda: supervisor.healthy, supervisor.stop,
            supervisor.failure, served.files.names,
        )  # fmt: skip

    return run_server(load, settings.server, begin)


def template_line(renderer: Renderer | None) -> list[str]:
    """How chats are dealt with; where the model has no template, that they go through a plain one."""
    if renderer is None:
        return []
    if renderer.kind == "model":
        return [f"{'chat':{LABEL}}{renderer.summary}"]
    told = "`User:` and `Assistant:` lines" if renderer.kind == "default" else "no chats are served"
    return [f"{'template':{LABEL}}the model has none: {told}; give one with --chat-template"]


def summary(engine: tuple[str, ...], settings: Settings) -> list[str]:
    """The engine's lines, flags without effect, and notices of the environment, in one column of labels."""
    ignored = [notice.removeprefix(IGNORED) for notice in settings.notices if notice.startswith(IGNORED)]
    notices = [notice for notice in settings.notices if not notice.startswith(IGNORED)]
    lines = [*engine, *([f"{'ignored':{LABEL}}{', '.join(ignored)}"] if ignored else [])]
    return [f"  {line}" for line in [*lines, *(f"{'notice':{LABEL}}{notice}" for notice in notices)]]


command = OptionCommand(
    "serve",
    run,
    "Serve a model over HTTP: OpenAI's routes under /v1. Without MODEL: smollm2:135m.",
    own=[click.Option(["--print-config"], is_flag=True, help="print all options as YAML for --config, and end")],
)
