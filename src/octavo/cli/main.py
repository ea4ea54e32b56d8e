"""`octavo COMMAND ...`: the table of commands, the version, and how every command ends.

A command's module is imported when it is called: `octavo --help` imports none of them. Whatever a command raises
becomes a message on standard error and an exit code here, and nowhere else.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NamedTuple

from octavo import __version__


class Entry(NamedTuple):
    """A command: what it does, and where its click command is."""

    place: str  # module:attribute
    help: str


COMMANDS = {
    "serve": Entry("octavo.cli.serve:command", "serve a model over HTTP"),
    "run": Entry("octavo.cli.run:command", "talk to a model in the terminal, or answer one prompt"),
    "complete": Entry("octavo.cli.complete:command", "go on with a text, without a chat template"),
    "launch": Entry("octavo.cli.launch:command", "start a client (codex, opencode, aider ...) on the server that runs"),
    "run-batch": Entry("octavo.cli.run_batch:command", "answer a file of requests; goes on where it was left"),
    "ps": Entry("octavo.cli.ps:command", "the servers that run: what they serve, where, since when, how busy"),
    "stop": Entry("octavo.cli.stop:command", "end a server, its requests first"),
    "bench": Entry("octavo.cli.bench:command", "measure speed: a table, latency, throughput, or a running server"),
    "profile": Entry("octavo.cli.profile:command", "where the time of a step goes, against what the machine can do"),
    "plan": Entry("octavo.cli.plan:command", "what a model would take of this machine's memory"),
    "verify": Entry("octavo.cli.verify:command", "check a model node by node against its reference"),
    "pull": Entry("octavo.cli.pull:command", "download a model"),
    "show": Entry("octavo.cli.show:command", "what a model is: architecture, parameters, formats, template, licence"),
    "list": Entry("octavo.cli.listing:command", "the models on this machine"),
    "rm": Entry("octavo.cli.rm:command", "remove a model and what was made of it"),
    "completion": Entry("octavo.cli.completion:command", "what a shell completes: bash, zsh, fish"),
    "doctor": Entry("octavo.cli.doctor:command", "is this machine fit to serve: what is wrong, and what to do"),
    "key": Entry("octavo.cli.key:command", "make an API key, and its line for --api-key-file"),
    "env": Entry("octavo.cli.env:command", "versions, processor, memory, folders: to paste into an issue"),
}
ALIASES = {"chat": "run", "ls": "list"}
VERBOSE = ("-v", "--log-level=debug")


def main(argv: list[str] | None = None) -> None:
    """The program. Ends the process with 0, 1, 2, 3, 4, 5, 6 or 130 (errors.py says which is which)."""
    args = sys.argv[1:] if argv is None else argv
    try:
        code = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `octavo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes nowhere
        code = 1  # as click ends
    sys.exit(code)


def _run(args: list[str]) -> int:
    first = args[0] if args else "--help"
    if first in ("--version", "-V", "version"):
        print(version())
        return 0
    if first in ("--help", "-h", "help"):
        if len(args) > 1 and _known(args[1]):
            return _run([args[1], "--help"])
        print(_help())
        return 0
    if first == "--install-completion":
        return _run(["completion", "--install", *args[1:]])
    name = _known(first)
    try:
        if name is None:
            raise _unknown(first)
        module, _, attribute = COMMANDS[name].place.partition(":")
        command = getattr(import_module(module), attribute)
        made = command.main(args[1:], prog_name=f"octavo {name}", standalone_mode=False)
        return made if isinstance(made, int) else 0
    except BrokenPipeError:
        raise
    except Exception as error:
        return _failed(error, any(word in VERBOSE for word in args))
    except KeyboardInterrupt:
        return _interrupted()


def _known(word: str) -> str | None:
    name = ALIASES.get(word, word)
    return name if name in COMMANDS else None


def _unknown(word: str) -> Exception:
    from octavo.errors import ConfigError
    from octavo.settings import nearest

    if word.startswith("-"):
        return ConfigError(f"{word} comes before a command. Commands: {', '.join(COMMANDS)}.", flag=word)
    close = nearest(word, {*COMMANDS, *ALIASES})
    rest = "" if close else f" Commands: {', '.join(COMMANDS)}."
    return ConfigError(f"unknown command {word}.{rest}", nearest=close and f"octavo {close}")


def _failed(error: Exception, verbose: bool) -> int:
    import click

    from octavo import logs
    from octavo.cli.terminal import explain, say
    from octavo.errors import OctavoError

    if isinstance(error, click.Abort):  # click's word for Ctrl-C
        return _interrupted()
    if verbose:
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, click.ClickException):
        error = OctavoError(error.format_message(), exit_code=2)
    if not isinstance(error, OctavoError):
        error = OctavoError(
            f"unexpected {type(error).__name__}: {error}\n"
            "this is a fault of octavo. The same command with -v shows where; `octavo env` says what to add to a report"
        )
    if logs.json_lines():
        logs.get("server").error("%s", error.message)
    else:
        say(explain(error))
    return error.exit_code


def _interrupted() -> int:
    from octavo.errors import INTERRUPTED

    print(file=sys.stderr)
    return INTERRUPTED


def version() -> str:
    """`octavo 0.1.0 (native avx512bf16)`: the version and the best instruction set that runs here."""
    try:
        from octavo.kernels import _native
    except ImportError:
        return f"octavo {__version__} (native library not built)"
    return f"octavo {__version__} (native {_native.variants()[0]})"


def _help() -> str:
    rows = [f"  {name:12}{entry.help}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: octavo COMMAND [MODEL] [OPTIONS]",
            "",
            "An inference server for language models. Without MODEL: smollm2:135m.",
            "",
            "Commands:",
            *rows,
            "",
            "  octavo COMMAND --help       its common options",
            "  octavo serve --help=all     every option;  --help=KEYWORD: those about one thing",
            "  octavo --version            version and instruction set",
        ]
    )


if __name__ == "__main__":
    main()
