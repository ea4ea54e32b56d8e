"""`octavo key NAME [OPTION ...]`: a new key for somebody, and its line for the file of --api-key-file.

The line goes to standard output, so that `>> keys` appends it; the key is shown once, on standard error.
"""

from __future__ import annotations

import click

from octavo.cli.terminal import say
from octavo.server.key_file import key_line, new_key


@click.command("key", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.argument("options", nargs=-1, metavar="[OPTION]...")
def command(name: str, options: tuple[str, ...]) -> None:
    """Make a key. The line for --api-key-file is printed, the key itself is shown once. What a key may do stands behind
    its hash: weight=3, concurrent=8, tokens-per-minute=60k, tokens-per-day=1m, deadline=60s, share-prefix-cache, admin.
    """
    key = new_key()
    line = key_line(name, key, list(options))
    click.echo(line)
    say(f"the key of {name}, which is shown this once: {key}")
