"""reliability.toml: every check once, every test and program of it there, quick ones quick; its page is current."""

import ast
import functools
from pathlib import Path

import pytest

from tests.reliability import PAGE, ROOT, Check, checks, section, told


@functools.cache
def marks_in(file: str) -> dict[str, bool]:
    """Names of a file's tests -> whether they are marked slow."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        node.name: any("mark.slow" in ast.unparse(each) for each in node.decorator_list)
        for node in functions
        if node.name.startswith("test_")
    }


def test_every_number_is_there_once() -> None:
    assert [check.number for check in checks()] == [*range(1, 90)]


@pytest.mark.parametrize("check", checks(), ids=lambda check: str(check.number))
def test_an_entry_is_whole(check: Check) -> None:
    tests = (*check.tests, *check.slow, *check.commands)
    assert bool(tests) == bool(check.held) != bool(check.why_not), "tests and what they hold, or why there are none"
    assert not (check.lacks and check.why_not) and (check.why_not or not check.absent)
    assert len(set(tests)) == len(tests)


@pytest.mark.parametrize("check", checks(), ids=lambda check: str(check.number))
def test_what_it_names_exists(check: Check) -> None:
    for ids, slow in ((check.tests, False), (check.slow, True)):
        for id_ in ids:
            file, _, name = id_.partition("::")
            found = marks_in(file)
            assert found and (name in found or not name), f"no test {id_}"
            assert not name or found[name] is slow, f"{id_} is {'not ' if slow else ''}marked slow"
            assert name or not any(found.values()), f"{id_} has slow tests: name the others"
    for command in check.commands:
        words = command.split()
        file = Path(*words[2].split(".")).with_suffix(".py") if words[1] == "-m" else Path(words[1])
        assert words[0] in ("python", "python3") and (ROOT / file).is_file(), command


def test_the_page_is_current() -> None:
    assert told(PAGE.read_text(encoding="utf-8")) == section(checks()), "python3 dev reliability --page writes it"
