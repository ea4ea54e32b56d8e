"""`octavo run [MODEL] [PROMPT]`, also `chat`: one answer on standard output, or a conversation in the terminal.

Who answers is told on standard error: a server of ours that serves this model on the default address, else an engine
in this process. It knows no engine and no HTTP (answering.py).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from octavo.cli.answering import Answering, InProcess, Server, Thought, apart, octavo_at, served_at
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import DIM, PLAIN, Progress, say
from octavo.config import EngineConfig, LogConfig, TextConfig
from octavo.errors import ConfigError
from octavo.settings import Client, Settings, client_environment

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")
_NOT_OF_ENGINE = ("model", "offline", "cache_dir", "state_dir", "thread_limit")  # a server may answer all the same


def run(
    settings: Settings,
    words: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    url: str | None,
    max_tokens: int | None,
    stats: bool,
) -> None:
    """Answer the prompt of the arguments or of the input; without any, talk."""
    text = one_prompt(words, prompt)
    check_model(settings)
    asked = _prompt(text)
    params = sampling(settings, max_tokens)
    answering = connect(settings, url, client_environment())
    messages = [{"role": "system", "content": system}] if system else []
    try:
        if asked is None:
            from octavo.cli.conversation import Conversation

            Conversation(answering, messages, params, stats).talk()
        else:
            say(f"{answering.model} · {answering.where}")
            pieces = answering.answer([*messages, {"role": "user", "content": asked}], params)
            show(answering, pieces, stats)
    finally:
        answering.close()


def sampling(settings: Settings, max_tokens: int | None) -> dict[str, Any]:
    """The parameters that the options name."""
    params = {name: settings.value(name) for name in SAMPLING if settings.value(name) is not None}
    return params if max_tokens is None else {**params, "max_tokens": max_tokens}


def one_prompt(words: tuple[str, ...], prompt: str | None) -> str | None:
    """The prompt of the arguments or of --prompt. Raises ConfigError where there are both."""
    if words and prompt is not None:
        raise ConfigError("two prompts: one as an argument, one as --prompt. Name one.", flag="--prompt")
    return " ".join(words) if words else prompt


def check_model(settings: Settings) -> None:
    """A prompt or a file of requests where the model belongs is told as such."""
    model = settings.engine.model
    if model.endswith(".jsonl"):
        raise ConfigError(f"{model} is no model.", flag=model, nearest=f"octavo run-batch -i {model} -o OUT.jsonl")
    if any(character.isspace() for character in model) and not Path(model).expanduser().exists():
        raise ConfigError(f"{model!r} is no model. To ask the default model: octavo run -p {model!r}", flag="--prompt")


def _prompt(given: str | None) -> str | None:
    """The prompt: what was piped in, then what was given; None to talk."""
    piped = ""
    if not sys.stdin.isatty():
        mode = os.fstat(0).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
            piped = sys.stdin.read().strip("\n")
        if not piped and given is None:
            raise ConfigError("no prompt: standard input is no terminal and has no text. octavo run MODEL 'PROMPT'")
    whole = "\n\n".join(filter(None, (piped, given)))
    if given is not None and not whole.strip():
        raise ConfigError("the prompt is empty.", flag="--prompt")
    return whole or None


def connect(settings: Settings, url: str | None, client: Client) -> Answering:
    """Who answers. Raises what loading or the server raises."""
    named = "model" in settings.sources
    model = settings.engine.model if named else None
    forced = url or client.base_url
    if forced:
        return Server(forced, model, client.api_key)
    wants_own = [name for name in settings.sources if name in _engine_options() and name not in _NOT_OF_ENGINE]
    key = client.api_key or next(iter(settings.server.api_key), None)
    default = f"http://127.0.0.1:{settings.server.port}"
    if not wants_own and octavo_at(default):
        served = served_at(default, key)
        if served and (model is None or _same(model) & set(served)):
            return Server(default, None if model is None else next(n for n in served if n in _same(model)), key)
        known = ", ".join(served) or "nothing that it tells without a key"
        say(f"{default} serves {known}; loading {settings.engine.model} here")
    given = {name: settings.value(name) for name in settings.sources if name != "config"}
    options = {"max_num_seqs": 1, **given, "model": settings.engine.model}  # one conversation needs one sequence
    progress = Progress(client.plain)
    try:
        return InProcess(options, progress.report)
    finally:
        progress.close()


def _engine_options() -> set[str]:
    return {each.name for each in fields(EngineConfig)}


def _same(model: str) -> set[str]:
    """All names of what was asked for."""
    from octavo.checkpoints.catalogue import entry_named

    entry = entry_named(model)
    path = Path(model)
    return {model, entry.name if entry else model, *({path.stem, path.name} if path.suffix == ".gguf" else ())}


def show(answering: Answering, pieces: Iterable[str], stats: bool) -> None:
    """One answer on standard output, as it comes; reasoning only where somebody looks at it, dimmed."""
    text, seen = "", sys.stdout.isatty()
    for piece in apart(pieces):
        thought = isinstance(piece, Thought)
        if thought and not seen:
            continue
        text = f"{DIM}{piece}{PLAIN}" if thought else piece
        sys.stdout.write(text)
        sys.stdout.flush()
    if not text.endswith("\n"):
        sys.stdout.write("\n")
    if stats and answering.last is not None:
        say(answering.last.line(answering.context))


command = OptionCommand(
    "run",
    run,
    "Talk to a model in the terminal; with a PROMPT, or text on standard input, give one answer and end. A running "
    "octavo server that serves the model answers, else the model is loaded in this process.",
    nouns=(EngineConfig, TextConfig, LogConfig),
    own=[
        click.Argument(["words"], nargs=-1, metavar="[PROMPT]"),
        click.Option(["--prompt", "-p"], metavar="TEXT", help="the prompt: one answer, then end"),
        click.Option(["--system", "-s"], metavar="TEXT", help="the system message"),
        click.Option(["--url"], metavar="URL", help="a server to ask (default: OPENAI_BASE_URL)"),
        click.Option(["--max-tokens"], type=click.IntRange(1), metavar="N", help="end of an answer, in tokens"),
        click.Option(["--stats"], is_flag=True, help="tokens, rate and context after each answer"),
    ],
)
