"""`octavo rm MODEL`: remove a model from octavo's folder or the hub's cache, and what was made of it.

That is its packed weights and its tokenizer. What lies elsewhere is never touched.
"""

from __future__ import annotations

import sys

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import say, size
from octavo.config import EngineConfig, LogConfig
from octavo.errors import ConfigError, ModelNotFound
from octavo.settings import Settings
from octavo.shelf import removals


def run(settings: Settings, yes: bool) -> None:
    """Ask, then remove. Raises ModelNotFound, ConfigError where nobody can be asked."""
    removal, made = removals(settings.engine)
    what = f"{removal.name}, {size(removal.nbytes + made.nbytes)}"
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{what}: to remove it without being asked, add --yes.", flag="--yes")
        if not click.confirm(f"remove {what}?", err=True):
            return
    try:
        removal.carry_out()
        made.carry_out()
    except OSError as error:
        raise ModelNotFound(f"cannot remove {error.filename}: {error.strerror}", param="model") from error
    say(f"removed {what}")


command = OptionCommand(
    "rm",
    run,
    "Remove a downloaded model, by its name in `octavo list`, and what was made of it.",
    nouns=(EngineConfig, LogConfig),
    own=[click.Option(["--yes", "-y"], is_flag=True, help="do not ask")],
)
