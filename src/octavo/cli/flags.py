"""The options of config.py as a command line: click parameters, help in groups, YAML; and what people paste.

Dash and underscore are the same, `--flag=value` and `--flag value` too; other servers' flags that need no counterpart
are dropped with a notice; an unknown flag is an error with the nearest name. It knows no command.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import click

from octavo.config import NOUNS
from octavo.errors import ConfigError
from octavo.option import Option, options_of
from octavo.settings import Settings, nearest, resolve

# Other servers' flags that need no counterpart: name -> (does a value follow, why it has no effect).
IGNORED: dict[str, tuple[bool, str]] = {
    "--enable-auto-tool-choice": (False, "always on"),
    "--enable-chunked-prefill": (False, "always on"),
    "--async-scheduling": (False, "decided by the engine"),
    "--trust-remote-code": (False, "no code of a model repository is ever run"),
    "--jinja": (False, "always on"),
    "--cont-batching": (False, "always on"),
    "-cb": (False, "always on"),
    "--flash-attn": (False, "always on"),
    "-fa": (False, "always on"),
    "--metrics": (False, "always on"),
    "--enable-metrics": (False, "always on"),
    "--swap-space": (True, "preemption recomputes"),
    "--disable-log-requests": (False, "requests are not logged unless asked"),
    "--enforce-eager": (False, "there are no CUDA graphs"),
    "--disable-cuda-graph": (False, "there are no CUDA graphs"),
    "-ngl": (True, "this is a CPU"),
    "--n-gpu-layers": (True, "this is a CPU"),
    "--gpu-layers": (True, "this is a CPU"),
    "--tensor-parallel-size": (True, "all cores compute as one"),
    "-tp": (True, "all cores compute as one"),
    "--tp": (True, "all cores compute as one"),
    "--pipeline-parallel-size": (True, "all cores compute as one"),
    "-pp": (True, "all cores compute as one"),
    "--no-ui": (False, "there is no page"),
    "--no-webui": (False, "there is no page"),
    "--uvicorn-log-level": (True, "--log-level is for all lines"),
    "-ctv": (True, "values are kept as keys are: --kv-cache-dtype"),
    "--cache-type-v": (True, "values are kept as keys are: --kv-cache-dtype"),
}
_ONLY_ONE = ("--tensor-parallel-size", "-tp", "--tp", "--pipeline-parallel-size", "-pp")  # of which 1 asks for nothing
_MAY_TAKE = {"-fa": ("on", "off", "auto", "0", "1"), "--flash-attn": ("on", "off", "auto", "0", "1")}
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\uff0d"
_QUOTES = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"


@dataclass
class Scanned:
    """Arguments in the one spelling that click gets, and what was left out on the way."""

    args: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # "--jinja (always on)"
    dotted: dict[str, dict[str, object]] = field(default_factory=dict)  # field name -> object built from --flag.key
    help: str | None = None  # "" for --help, KEYWORD for --help=KEYWORD


class FlagTable:
    """Every spelling that a command takes: options of config.py and the command's own click parameters."""

    def __init__(self, options: Sequence[Option], own: Sequence[click.Parameter]) -> None:
        self.options = tuple(options)
        self.spellings: dict[str, tuple[str, bool]] = {}  # spelling -> (canonical, does a value follow)
        self.objects = {each.flag: each for each in options if each.kind.yaml_object}
        for each in options:
            takes = bool(each.kind.metavar)
            for name in (each.flag, *each.aliases):
                self.spellings[name] = (each.flag, takes)
            if not takes:
                negation = "--no-" + each.flag[2:]
                for name in (negation, *each.negations):
                    self.spellings[name] = (negation, False)
        for param in own:
            if isinstance(param, click.Option):
                takes = not (param.is_flag or param.count)
                self.spellings.update({name: (name, takes) for name in (*param.opts, *param.secondary_opts)})

    def unknown(self, name: str) -> ConfigError:
        known = [*self.spellings, *IGNORED]
        return ConfigError(f"unknown option {name}.", flag=name, nearest=nearest(name, set(known)))

    def scan(self, args: Sequence[str]) -> Scanned:
        """The arguments in canonical spelling; ConfigError for an unknown flag, a typographic dash or quote."""
        made, rest = Scanned(), list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                made.args += ["--", *rest]
                break
            if word[:1] and word[0] in _DASHES:
                typed = "--" + word.lstrip(_DASHES + "-")
                raise ConfigError(
                    f"unknown option “{word}”: it begins with a typographic dash ({word[0]}). Type {typed}.", flag=typed
                )
            if not word.startswith("-") or word == "-" or word[1:2].isdigit():
                made.args.append(word)
            elif not self._help(word, made):
                self._flag(word, rest, made)
        return made

    def _help(self, word: str, made: Scanned) -> bool:
        name, _, keyword = word.partition("=")
        if name not in ("--help", "-h"):
            return False
        made.help = keyword
        return True

    def _flag(self, word: str, rest: list[str], made: Scanned) -> None:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        if any(quote in name for quote in _QUOTES):
            raise ConfigError(f"{word}: it contains a typographic quote. Type ' or \".", flag=name)
        known = name in self.spellings or name in IGNORED
        if not known and not name.startswith("--") and name[:2] in self.spellings:
            name, equals, value = name[:2], "=", word[2:].removeprefix("=")  # -p8001
        base, dot, path = name.partition(".")
        if name == "-v" and name not in self.spellings:
            made.args.append("--log-level=debug")
        elif dot and base in self.objects:
            self._dotted(self.objects[base].name, path, value if equals else _next(word, rest), made)
        elif name in self.spellings:
            canonical, takes = self.spellings[name]
            if takes:
                made.args += [canonical, _plain(name, value if equals else _next(word, rest), base in self.objects)]
            elif equals:
                made.args.append(self._switched(canonical, value))
            else:
                made.args.append(canonical)
        elif name in IGNORED:
            self._ignored(name, value if equals else None, rest, made)
        else:
            raise self.unknown(name)

    def _ignored(self, name: str, value: str | None, rest: list[str], made: Scanned) -> None:
        takes, why = IGNORED[name]
        if value is None and rest and (takes or rest[0] in _MAY_TAKE.get(name, ())):
            value = rest.pop(0)
        if name in _ONLY_ONE and value != "1":
            raise ConfigError(f"{name} {value or ''}: the model runs on this machine's cores alone, as 1.", flag=name)
        made.ignored.append(f"{name} ({why})")

    def _switched(self, canonical: str, value: str) -> str:
        """`--flag=false` → `--no-flag`."""
        positive = canonical.replace("--no-", "--", 1)
        option = next((each for each in self.options if each.flag == positive), None)
        if option is None:
            raise ConfigError(f"{canonical} takes no value.", flag=canonical)
        wanted = bool(option.parse(value)) == (canonical == positive)
        return positive if wanted else "--no-" + positive[2:]

    def _dotted(self, name: str, path: str, value: str, made: Scanned) -> None:
        """`--flag.a.b 1` → {"a": {"b": 1}}; the value is JSON if it can be, else text."""
        try:
            leaf: object = json.loads(value)
        except json.JSONDecodeError:
            leaf = value
        at = made.dotted.setdefault(name, {})
        *folders, last = path.replace("-", "_").split(".")
        for folder in folders:
            below = at.setdefault(folder, {})
            if not isinstance(below, dict):
                raise ConfigError(f"--{name.replace('_', '-')}.{path}: {folder} is a value already.", flag=name)
            at = below
        at[last] = leaf


def _next(word: str, rest: list[str]) -> str:
    if not rest:
        raise ConfigError(f"{word} needs a value.", flag=word)
    return rest.pop(0)


def _plain(name: str, value: str, is_object: bool) -> str:
    if is_object and any(quote in value for quote in _QUOTES):
        raise ConfigError(f"{name}: the value contains a typographic quote. Type ' or \".", flag=name)
    return value


class OptionCommand(click.Command):
    """A click command whose options come from config.py.

    `run(settings, **own)` is called with its own parameters and returns the exit code, or None for 0.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., int | None],
        help: str,
        *,
        nouns: Sequence[type] = NOUNS,
        own: Sequence[click.Parameter] = (),
        model_argument: bool = True,
    ) -> None:
        self.shown = tuple(each for noun in nouns for each in options_of(noun))
        self.table = FlagTable(self.shown, own)
        self.run = run
        self.own = tuple(own)
        params: list[click.Parameter] = [_parameter(each) for each in self.shown]
        if model_argument:
            params.insert(0, click.Argument(["model_argument"], required=False, metavar="[MODEL]"))
        super().__init__(name, callback=self._run, params=[*params, *own], help=help, add_help_option=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        scanned = self.table.scan(args)
        if scanned.help is not None:
            click.echo(self.help_text(ctx.command_path, scanned.help))
            ctx.exit(0)
        ctx.meta["octavo.scanned"] = scanned
        try:
            return super().parse_args(ctx, scanned.args)
        except click.UsageError as error:
            raise ConfigError(error.format_message()) from None

    def _run(self, **params: object) -> int | None:
        scanned: Scanned = click.get_current_context().meta["octavo.scanned"]
        own = {name: params.pop(name) for name in [param.name for param in self.own] if name}
        positional = params.pop("model_argument", None)
        given = {name: value for name, value in params.items() if value is not None and value != ()}
        if positional is not None and given.setdefault("model", positional) != positional:
            raise ConfigError(f"two models: {positional} and --model {given['model']}. Name one.", flag="--model")
        for name, made in scanned.dotted.items():
            option = next(each for each in self.shown if each.name == name)
            whole = option.parse(given.get(name, {}))
            given[name] = {**whole, **made} if isinstance(whole, dict) else made
        settings = resolve(given)
        ignored = [f"ignored: {each}" for each in dict.fromkeys(scanned.ignored)]
        return self.run(replace(settings, notices=(*settings.notices, *ignored)), **own)

    def help_text(self, path: str, keyword: str = "") -> str:
        """Help: the common options in groups; all of them for `all`; those that mention `keyword`."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.own:
            if isinstance(param, click.Option) and (not keyword or keyword == "all" or keyword in param.opts[0]):
                rows.setdefault("Command", []).append((", ".join(param.opts), param.help or ""))
        word = keyword.lower().lstrip("-").replace("_", "-")
        for each in self.shown:
            haystack = " ".join((each.flag, *each.aliases, each.help, each.group)).lower()
            if (word in haystack) if word not in ("", "all") else (word == "all" or not each.rare):
                rows.setdefault(each.group, []).append((_spelled(each, bool(word)), _explained(each)))
        argument = "".join(f" {each.metavar}" for each in self.params if isinstance(each, click.Argument))
        lines = [f"Usage: {path}{argument} [OPTIONS]", "", *textwrap.wrap(self.help or "", 100)]
        if not rows:
            lines += ["", f"No option mentions {keyword!r}."]
        for group, entries in rows.items():
            lines += ["", f"{group}:", *_columns(entries)]
        if not word:
            hidden = sum(each.rare for each in self.shown)
            lines += ["", f"{hidden} more: --help=all; about one thing: --help=KEYWORD. -v is --log-level debug."]
        return "\n".join(lines)


def _parameter(each: Option) -> click.Option:
    """The click option of an option. Its value stays text and is None when absent: settings.resolve reads it."""
    if each.kind.metavar:
        return click.Option(
            [each.flag, each.name], multiple=each.kind.many, default=None, metavar=each.kind.metavar, help=each.help
        )
    return click.Option([f"{each.flag}/--no-{each.flag[2:]}", each.name], default=None, help=each.help)


def _spelled(each: Option, with_aliases: bool) -> str:
    short = [name for name in each.aliases if len(name) == 2]
    names = [*short, *(name for name in each.aliases if name not in short)] if with_aliases else short
    flag = each.flag
    if not each.kind.metavar:
        flag = f"--[no-]{each.flag[2:]}"
    return " ".join(filter(None, (", ".join([flag, *names]), each.kind.metavar)))


def _explained(each: Option) -> str:
    shown = shown_value(each, each.default)
    return each.help + (f" [{shown}]" if shown else "")


def shown_value(each: Option, value: object) -> str:
    """A value as help and YAML comments show it."""
    if each.kind.secret:
        return "set" if value else ""
    if value is None or value is False:
        return ""
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _columns(entries: Iterable[tuple[str, str]], width: int = 34, total: int = 110) -> list[str]:
    lines = []
    for left, right in entries:
        wrapped = textwrap.wrap(right, total - width) or [""]
        if len(left) + 2 >= width:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left:<{width - 2}}{wrapped.pop(0)}")
        lines += [" " * width + more for more in wrapped]
    return lines


def to_yaml(settings: Settings) -> str:
    """Settings as the YAML that --config reads back, each value that is no default with where it comes from. Keys are
    flags; secrets are named and left out."""
    lines, group = [], ""
    for each in (option for noun in NOUNS for option in options_of(noun) if option.name != "config"):
        value = settings.value(each.name)
        if each.group != group:
            group = each.group
            lines.append(f"# {group}")
        key, source = each.flag[2:], settings.sources.get(each.name)
        whence = f"  # from {source}" if source else ""
        if each.kind.secret:
            if value:
                lines.append(f"# {key}: set, not printed{whence}")
        elif not (value is None and each.kind.yaml_object):
            plain = list(value) if isinstance(value, tuple) else "auto" if value is None else value
            lines.append(f"{key}: {json.dumps(plain, ensure_ascii=False)}{whence}")  # JSON is YAML
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The page docs/options.md."""
    lines = [
        "# Options",
        "",
        "Made by `python3 dev docs` from src/octavo/config.py. Each is also a key of the YAML file (`--config`) and",
        "the variable `OCTAVO_ARG_<FLAG>`; precedence: flag, variable, file, default. Counts take `32k` (32,000) and",
        "`32K` (32,768), sizes `4GiB` and `4GB`, durations `30s` and `5m`; `auto` and `-1` leave it to start-up.",
    ]
    group = ""
    for each in (option for noun in NOUNS for option in options_of(noun)):
        if each.group != group:
            group = each.group
            lines += ["", f"## {group}", "", "| flag | also | default | meaning |", "|---|---|---|---|"]
        also = ", ".join(f"`{name}`" for name in (*each.aliases, *each.negations, *each.env))
        value = "auto" if each.kind.auto and each.default is None else shown_value(each, each.default)
        flag = f"`{_spelled(each, False)}`".replace("|", "\\|")
        lines.append(f"| {flag} | {also} | {value} | {each.help.replace('|', chr(92) + '|')} |")
    lines += ["", "## Accepted without effect", ""]
    lines += [f"- `{name}`: {why}" for name, (_, why) in IGNORED.items()]
    return "\n".join(lines) + "\n"
