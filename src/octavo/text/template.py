"""One chat template: compiled in a sandbox with the settings that model authors test against, and rendered.

The environment is that of Hugging Face's chat templates (trim_blocks, lstrip_blocks, loop controls, `tojson` as plain
JSON, raise_exception, strftime_now, `{% generation %}`). It knows Jinja only: not what messages mean, nor whether the
template may be trusted with this process (prompt decides, template_worker isolates).
"""

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # jinja2 itself imports it at the first error, when a worker may open no file any more
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST_TEMPLATE = 1 << 20  # characters; the largest published ones are about 20,000


class Fault(enum.StrEnum):
    REFUSAL = "refusal"  # the template's own raise_exception: these messages are not for it
    FAILURE = "failure"  # it stumbled over these messages
    BROKEN = "broken"  # no use for any messages: no Jinja, an escape tried, too much time or memory


class TemplateFailed(Exception):
    """A template that cannot be compiled or rendered."""

    def __init__(self, message: str, fault: Fault = Fault.BROKEN) -> None:
        super().__init__(message)
        self.message = message
        self.fault = fault


class _Refusal(jinja2.TemplateError):
    """What raise_exception(message) raises."""


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks assistant text for training; it stands for its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """namespace() without underscored names, so that a template cannot store what the sandbox hides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Template:
    """A compiled template. Raises TemplateFailed for anything that template code can do wrong."""

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise TemplateFailed(f"the template has {len(source)} characters; at most {LONGEST_TEMPLATE} are accepted")
        try:
            self._template = _environment().from_string(source)
        except RecursionError:
            raise TemplateFailed("the template is nested too deeply") from None
        except Exception as error:  # any fault of foreign code, from the parser or the Python compiler
            raise TemplateFailed(f"the template does not compile: {_describe(error)}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables, which are JSON values."""
        try:
            return self._template.render(variables)
        except _Refusal as refusal:
            raise TemplateFailed(str(refusal), Fault.REFUSAL) from refusal
        except (jinja2.exceptions.SecurityError, MemoryError, OverflowError, RecursionError, PermissionError) as error:
            raise TemplateFailed(f"the template does what it may not: {_describe(error)}") from error
        except Exception as error:  # any fault of foreign code
            raise TemplateFailed(f"the template failed: {_describe(error)}", Fault.FAILURE) from error


def global_names() -> frozenset[str]:
    """Names that a template finds without being given them."""
    return frozenset(_environment().globals)


def template_variables(source: str) -> frozenset[str]:
    """Names that a template looks for beside its globals; none for one that does not compile."""
    try:
        environment = _environment()
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source)))
    except (jinja2.TemplateError, RecursionError):
        return frozenset()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    for name in ("lipsum", "cycler", "joiner"):  # not in use by templates; lipsum(n=10**8) runs for hours
        environment.globals.pop(name)
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_PlainNamespace, dict=_Dict()
    )
    return environment


class _Dict:
    """dict(...) and dict.fromkeys(...) only: the class itself has more attributes than a template needs."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold the underscored name {name[:40]!r}")


def _describe(error: BaseException) -> str:
    where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"
