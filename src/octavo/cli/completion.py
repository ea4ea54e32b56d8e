"""`octavo completion bash|zsh|fish`: what a shell completes, made from the parsers of all commands.

The scripts are whole: pressing Tab starts no Python. `--install` puts one where its shell looks.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo.checkpoints.catalogue import CATALOGUE
from octavo.cli.flags import OptionCommand
from octavo.cli.main import ALIASES, COMMANDS
from octavo.cli.terminal import say
from octavo.config import LogConfig
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Settings, client_folders, login_shell

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = ("FILE", "DIR", "PATH")  # in a metavar: what follows is on the disk
MODEL = ("[MODEL]", "MODEL")


@dataclass(frozen=True)
class Flag:
    """names: every spelling. values: what may follow; () for anything, None for nothing. files: it is a path."""

    names: tuple[str, ...]
    help: str
    values: tuple[str, ...] | None
    files: bool = False


@dataclass(frozen=True)
class Command:
    """words: what may stand where no flag does; models: so may a model."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...] = ()
    models: bool = False


def commands() -> Iterator[Command]:
    """All of them, with those of `bench` as `bench serve` and so on, and aliases."""
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.place.partition(":")
        made = getattr(import_module(module), attribute)
        below: dict[str, click.Command] = getattr(made, "parsers", {"": made})
        for word, parser in below.items():
            path = f"{name} {word}".strip()
            yield _command(
                path, entry.help, parser, () if word else (*filter(None, below), *getattr(made, "words", ()))
            )
            for alias in (alias for alias, meant in ALIASES.items() if meant == path):
                yield _command(alias, entry.help, parser, ())


def _command(path: str, help: str, parser: click.Command, words: tuple[str, ...]) -> Command:
    flags = []
    shown = parser.shown if isinstance(parser, OptionCommand) else ()
    for each in shown:
        metavar = each.kind.metavar
        if not metavar:
            flags.append(Flag((each.flag, f"--no-{each.flag[2:]}", *each.aliases, *each.negations), each.help, None))
            continue
        values = tuple(metavar.split("|")) if "|" in metavar and metavar.lower() == metavar else ()
        flags.append(Flag((each.flag, *each.aliases), each.help, values, any(word in metavar for word in FILES)))
    models = False
    for param in parser.params:
        if isinstance(param, click.Argument):
            models = models or (param.metavar or "") in MODEL or param.name == "model_argument"
        elif isinstance(param, click.Option) and param.name not in {each.name for each in shown}:
            choices = tuple(map(str, param.type.choices)) if isinstance(param.type, click.Choice) else ()
            files = (param.metavar or "") in FILES
            names = (*param.opts, *param.secondary_opts)
            flags.append(Flag(names, param.help or "", None if param.is_flag else choices, files))
    return Command(path, help, tuple(flags), words, models)


def models() -> list[str]:
    """The short names."""
    return list(CATALOGUE)


def bash() -> str:
    """Two tables as `case`: what follows a flag, and the flags of a command."""
    after, flags, words = [], [], []
    for each in commands():
        valued = [flag for flag in each.flags if flag.values is not None]
        for flag in valued:
            pattern = "|".join(f"{shlex.quote(f'{each.name} {name}')}" for name in flag.names)
            answer = "_octavo_files" if flag.files else f"_octavo_words {shlex.quote(' '.join(flag.values or ()))}"
            after.append(f"    {pattern}) {answer}; return ;;")
        names = " ".join(name for flag in each.flags for name in flag.names if name.startswith("--"))
        flags.append(f"    {shlex.quote(each.name)}) _octavo_words {shlex.quote(names + ' --help')} ;;")
        if each.words or each.models:
            known = " ".join([*each.words, *(models() if each.models else [])])
            files = "; _octavo_files" if each.models else ""
            words.append(f"    {shlex.quote(each.name)}) _octavo_words {shlex.quote(known)}{files} ;;")
    top = " ".join([*COMMANDS, *ALIASES])
    deep = "|".join(sorted({shlex.quote(each.name) for each in commands() if " " in each.name}))
    return BASH.format(
        after="\n".join(after), flags="\n".join(flags), words="\n".join(words), top=top, deep=deep or "''"
    )  # fmt: skip


BASH = """\
# bash completion of octavo; made by `octavo completion bash`
_octavo_words() {{
  local word; COMPREPLY+=()
  while IFS= read -r word; do COMPREPLY+=("${{word#"$colon"}}"); done < <(compgen -W "$1" -- "$cur")
}}
_octavo_files() {{
  local word
  while IFS= read -r word; do COMPREPLY+=("${{word#"$colon"}}"); done < <(compgen -f -- "$cur")
}}
_octavo() {{
  COMPREPLY=()
  local line="${{COMP_LINE:0:COMP_POINT}}" words=() cur before command colon=""
  read -r -a words <<< "$line"
  [[ "$line" == *[[:space:]] ]] && words+=("")
  cur="${{words[-1]}}"; before="${{words[-2]:-}}"; command="${{words[1]:-}}"
  if (( ${{#words[@]}} <= 2 )); then _octavo_words "{top} --help --version"; return; fi
  if (( ${{#words[@]}} > 3 )); then
    case "$command ${{words[2]}}" in {deep}) command="$command ${{words[2]}}" ;; esac
  fi
  if [[ "$cur" == --*=* ]]; then before="${{cur%%=*}}"; cur="${{cur#*=}}"
  elif [[ "$cur" == *:* ]]; then colon="${{cur%"${{cur##*:}}"}}"; fi
  case "$command $before" in
{after}
  esac
  if [[ "$cur" == -* ]]; then
    case "$command" in
{flags}
    esac
    return
  fi
  case "$command" in
{words}
    *) _octavo_files ;;
  esac
}}
complete -o filenames -o nosort -F _octavo octavo 2>/dev/null || complete -o filenames -F _octavo octavo
"""


def fish() -> str:
    """A `complete` for each flag."""
    quote = _fish_quoted
    lines = ["# fish completion of octavo; made by `octavo completion fish`", "complete -c octavo -f"]
    every = " ".join([*COMMANDS, *ALIASES])
    for name, entry in COMMANDS.items():
        none = quote(f"not __fish_seen_subcommand_from {every}")
        lines.append(f"complete -c octavo -n {none} -a {name} -d {quote(entry.help)}")
    for each in commands():
        first, _, second = each.name.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}" + (
            f"; and __fish_seen_subcommand_from {second}" if second else ""
        )
        begin = f"complete -c octavo -n {quote(seen)}"
        known = [*each.words, *(models() if each.models else [])]
        if known:
            lines.append(f"{begin} -a {quote(' '.join(known))}" + (" -F" if each.models else ""))
        for flag in each.flags:
            spelled = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-{'s' if len(name) == 2 else 'o'} {name[1:]}"
                for name in flag.names
            )
            takes = "" if flag.values is None else " -r -F" if flag.files else f" -x -a {quote(' '.join(flag.values))}"
            lines.append(f"{begin} {spelled}{takes} -d {quote(flag.help)}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def zsh() -> str:
    """An `_arguments` for each command."""
    lines = ["#compdef octavo", "# zsh completion of octavo; made by `octavo completion zsh`", "", "_octavo() {"]
    lines += ["  local -a commands models", f"  models=({' '.join(shlex.quote(each) for each in models())})"]
    lines += ["  commands=("]
    lines += [f"    {shlex.quote(f'{name}:{entry.help}')}" for name, entry in COMMANDS.items()]
    lines += [
        "  )",
        "  if (( CURRENT == 2 )); then _describe command commands; return; fi",
        '  local command="${words[2]}"',
    ]
    for each in commands():
        if " " in each.name:
            first, second = each.name.split(" ")
            lines.append(f'  [[ "${{words[2]}} ${{words[3]}}" == "{first} {second}" ]] && command="{each.name}"')
    lines += ["  shift words; (( CURRENT-- ))", '  [[ "$command" == *" "* ]] && { shift words; (( CURRENT-- )) }']
    lines += ['  case "$command" in']
    for each in commands():
        lines.append(f"    {shlex.quote(each.name)}) _arguments -S \\")
        for flag in each.flags:
            lines += [f"      {shlex.quote(_zsh_flag(name, flag))} \\" for name in flag.names]
        words = " ".join([*each.words, *(["$models"] if each.models else [])])
        rest = f"*:argument:{{compadd -- {words}; _files}}" if words else "*:file:_files"
        lines.append(f"      {shlex.quote(rest)} ;;")
    begin = '[[ "${funcstack[1]}" == _octavo ]] && _octavo "$@" || compdef _octavo octavo'
    return "\n".join([*lines, "  esac", "}", "", begin, ""])


def _zsh_flag(name: str, flag: Flag) -> str:
    told = flag.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    if flag.values is None:
        return f"{name}[{told}]"
    what = "_files" if flag.files else f"({' '.join(flag.values)})" if flag.values else ""
    return f"{name}=[{told}]:value:{what}"


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def run(settings: Settings, shell: str | None, install: bool) -> None:
    """Print the script, or put it where the shell looks."""
    name = shell or (Path(login_shell()).name if install else "")
    if name not in SHELLS:
        raise ConfigError(f"which shell? octavo completion {'|'.join(SHELLS)}", flag="shell")
    text = SHELLS[name]()
    if not install:
        click.echo(text, nl=False)
        return
    path, todo = _place(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OctavoError(f"{path} cannot be written: {error.strerror}") from None
    say(f"wrote {path}; {todo}")


def _place(name: str) -> tuple[Path, str]:
    """Where a shell looks, and what is left to do."""
    folders = client_folders()
    if name == "fish":
        return folders["config"] / "fish" / "completions" / "octavo.fish", "new shells have it"
    if name == "zsh":
        line = "fpath=(~/.zfunc $fpath); autoload -Uz compinit && compinit"
        return Path("~/.zfunc/_octavo").expanduser(), f"~/.zshrc needs, if it has not: {line}"
    return folders["data"] / "bash-completion" / "completions" / "octavo", "new shells with bash-completion have it"


class Completion(OptionCommand):
    """The command; its words are the shells."""

    words = tuple(SHELLS)


command = Completion(
    "completion",
    run,
    "The script by which a shell completes octavo's commands, options and models: source <(octavo completion bash).",
    nouns=(LogConfig,),
    own=[
        click.Argument(["shell"], required=False, metavar="[bash|zsh|fish]"),
        click.Option(["--install"], is_flag=True, help="put it where the shell looks (default: your login shell)"),
    ],
    model_argument=False,
)
