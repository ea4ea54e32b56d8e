"""`octavo complete [MODEL] [PROMPT]`: what follows a text, without any chat template, as it comes.

Who answers is found as for `octavo run` (run.py): a server of ours that serves the model, else an engine here.
"""

from __future__ import annotations

import sys

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.run import check_model, connect, one_prompt, sampling, show
from octavo.cli.terminal import say
from octavo.config import EngineConfig, LogConfig, TextConfig
from octavo.errors import ConfigError
from octavo.settings import Settings, client_environment


def run(
    settings: Settings,
    words: tuple[str, ...],
    prompt: str | None,
    suffix: str,
    echo: bool,
    url: str | None,
    max_tokens: int | None,
    stats: bool,
) -> None:
    """Go on with the text of the arguments, or of the input, on standard output."""
    text = one_prompt(words, prompt)
    check_model(settings)
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.read()  # to the last byte: what ends the text decides how it goes on
    if not text:
        raise ConfigError("no prompt: octavo complete MODEL 'Once upon a time', or text on standard input")
    answering = connect(settings, url, client_environment())
    try:
        say(f"{answering.model} · {answering.where}")
        if echo:
            sys.stdout.write(text)
        show(answering, answering.complete(text, suffix, sampling(settings, max_tokens)), stats)
    finally:
        answering.close()


command = OptionCommand(
    "complete",
    run,
    "Go on with a text as it stands, without a chat template. A running octavo server that serves the model answers, "
    "else the model is loaded in this process.",
    nouns=(EngineConfig, TextConfig, LogConfig),
    own=[
        click.Argument(["words"], nargs=-1, metavar="[PROMPT]"),
        click.Option(["--prompt", "-p"], metavar="TEXT", help="the text"),
        click.Option(["--suffix"], metavar="TEXT", default="", help="fill in what stands between the prompt and this"),
        click.Option(["--echo"], is_flag=True, help="the prompt before what follows it"),
        click.Option(["--url"], metavar="URL", help="a server to ask (default: OPENAI_BASE_URL)"),
        click.Option(["--max-tokens", "-n"], type=click.IntRange(1), metavar="N", help="end of it, in tokens"),
        click.Option(["--stats"], is_flag=True, help="tokens, rate and context at the end"),
    ],
)
