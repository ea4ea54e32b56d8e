"""Templates that attack: escapes from the sandbox, greed for memory and time, and what is left to the process."""

import pathlib
import time
from collections.abc import Iterator

import pytest

from octavo.errors import InvalidRequest, UnsupportedModel
from octavo.text.template import Fault, Template, TemplateFailed
from octavo.text.template_worker import TemplateWorker
from tests.text.test_prompt import USER, of_model, of_source
from tests.tokenizer.vocabularies import SMOLLM2


@pytest.fixture(scope="module")
def worker() -> Iterator[TemplateWorker]:
    worker = TemplateWorker()
    yield worker
    worker.close()


OPEN = "open('MARKER', 'w')"
ESCAPES = [
    # CVE-2024-34359
    "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}"
    "{{ x()._module.__builtins__['__import__']('os').popen('touch MARKER') }}{% endif %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "{{ joiner.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
    "{{ namespace.__init__.__globals__['os'].system('touch MARKER') }}",
    "{{ raise_exception.__globals__.__builtins__." + OPEN + " }}",
    "{{ strftime_now.__globals__['__builtins__']." + OPEN + " }}",
    "{{ dict.__class__.__init__.__globals__.__builtins__." + OPEN + " }}",
    "{{ self.__init__.__globals__.__builtins__." + OPEN + " }}",
    "{{ self._TemplateReference__context.environment.from_string('x').root_render_func.__globals__.x.y }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception).x.y }}{{ 1/0 }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}).x.y }}",
    "{{ ('{0.__class__}' | attr('format'))(1).x.y }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "{{ messages.append(1) }}{{ messages.clear() }}",
    "{% import 'os' as os %}{{ os.system('touch MARKER') }}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{{ messages | map('attr', '__class__') | map(attribute='x.y') | list }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__.x }}",
    "{{ loop.__class__.__x.y }}",
    "{{ (messages[0].content ~ '').__add__.__self__.__class__.__x.y }}",
    "{{ raise_exception.__code__.co_consts.x }}",
    "{% for k in (raise_exception | list) %}{% endfor %}",
]
GREEDY = [
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ ('x' * 10**5).replace('x', 'y' * 10**6) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ lipsum(n=10**8) }}",
]
SLOW = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(99999) %}{% set ns.s = ns.s ~ ns.s[:9999] %}{% endfor %}"
    "{% for i in range(99999) %}{% set ns.s = ns.s.replace('a', 'b').replace('b', 'a') %}{% endfor %}",
]
DEEP = [
    "{% if 1 %}" * 5500 + "{% endif %}" * 5500,
    "{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}",
    "{{ " + "[" * 20000 + " }}",
    "{{ 1" + " + 1" * 20000 + " }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "x" * (1 << 21),
]


@pytest.mark.parametrize("number", range(len(ESCAPES)))
def test_escapes_from_the_sandbox(number: int, worker: TemplateWorker, tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "marker"
    source = ESCAPES[number].replace("MARKER", str(marker))
    variables = {"messages": [USER]}
    with pytest.raises(TemplateFailed):
        Template(source).render(variables)
    with pytest.raises(TemplateFailed):
        worker.render(source, variables)
    assert not marker.exists() and variables == {"messages": [USER]}
    assert worker.render("{{ 1 + 1 }}", {}) == "2"


@pytest.mark.parametrize("source", [*GREEDY, *SLOW, *DEEP], ids=lambda source: source[:40])
def test_greedy_templates_end_in_time(source: str, worker: TemplateWorker) -> None:
    assert worker.render("{{ 1 + 1 }}", {}) == "2"  # the child runs
    begin = time.monotonic()
    with pytest.raises(TemplateFailed) as error:
        worker.render(source, {}, seconds=1.0)
    assert error.value.fault is not Fault.REFUSAL
    assert time.monotonic() - begin < 3.0
    assert worker.render("{{ 1 + 1 }}", {}) == "2"  # and the next request is served


@pytest.mark.parametrize("source", [ESCAPES[0], GREEDY[0], SLOW[0], DEEP[0], DEEP[1], "{% if %}"])
def test_such_a_model_is_refused_at_load(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedModel, match="chat template 'default' is refused"):
        of_source(source)


def test_a_request_with_such_a_template_is_refused() -> None:
    template = of_model(SMOLLM2)
    for source in (ESCAPES[2], GREEDY[0], "{% if %}", "x" * (1 << 21)):
        with pytest.raises(InvalidRequest) as error:
            template.render_messages([USER], chat_template=source)
        assert error.value.param == "chat_template"
    template.close()


def test_a_stumbling_probe_is_no_refusal() -> None:
    template = of_source("{{ messages[1].content.strip() }}")
    assert template.render_messages([USER, {"role": "user", "content": " b "}]).text == "b"


def test_the_worker_has_no_environment_and_survives_being_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_SECRET", "x")
    worker = TemplateWorker()
    assert worker.render("a", {}) == "a"
    child = worker._child
    assert child is not None
    assert b"OCTAVO_SECRET" not in pathlib.Path(f"/proc/{child.pid}/environ").read_bytes()
    child.kill()
    child.wait()
    assert worker.render("b", {}) == "b"
    with pytest.raises(TemplateFailed, match="plain JSON"):
        worker.render("c", {"x": object()})
    worker.close()
    assert worker.render("d{{ x }}", {"x": "é\ud800"[:1]}) == "dé"
    worker.close()
