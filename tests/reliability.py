"""The 89 checks of failures of this field (reliability.toml): runs what holds each of them, and tells a line for each.

    python3 dev reliability [--slow] [NUMBER ...]      the quick tests; --slow: the others and the programs, too
    python3 dev reliability --page                     runs nothing; writes the list into docs/reliability.md

The exit code is 1 if anything failed. A check is held if each of its tests passed, in part if the list asks for more.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST, PAGE = Path(__file__).with_suffix(".toml"), ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- reliability.toml: begin -->\n", "<!-- reliability.toml: end -->\n"
HELD, PART, NOT, ABSENT = "held", "in part", "not held", "nothing here"
FAILED, SKIPPED = "FAILED", "skipped"


@dataclass(frozen=True)
class Check:
    """An entry of reliability.toml, whose head says what each field is."""

    number: int
    title: str
    held: str = ""
    tests: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    lacks: str = ""
    why_not: str = ""
    absent: bool = False

    @property
    def state(self) -> str:
        if self.why_not:
            return ABSENT if self.absent else NOT
        return PART if self.lacks else HELD


def checks() -> tuple[Check, ...]:
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["check"]
    return tuple(Check(**{key: tuple(v) if isinstance(v, list) else v for key, v in each.items()}) for each in entries)


# -- running -----------------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    if words == ["--page"]:
        before, _, after = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + section(checks()) + after.partition(END)[2], encoding="utf-8")
        return 0
    slow, numbers = "--slow" in words, [word for word in words if word != "--slow"]
    known = {str(check.number): check for check in checks()}
    if unknown := [word for word in numbers if word not in known]:
        print(f"no check {', '.join(unknown)}: give numbers from 1 to {len(known)}, --slow or --page", file=sys.stderr)
        return 2
    chosen = [known[number] for number in numbers] if numbers else [*known.values()]
    results = run_tests(unique(test for check in chosen for test in (*check.tests, *(check.slow if slow else ()))))
    if slow:
        results |= {command: run_command(command) for command in unique(c for check in chosen for c in check.commands)}
    failed = 0
    for check in chosen:
        word, text = verdict(check, results)
        failed += word == FAILED
        print(f"{check.number:3}  {word:12}  {check.title}: {text}")
    print(
        "\n" + ", ".join(f"{count} {word}" for word, count in Counter(verdict(c, results)[0] for c in chosen).items())
    )
    return int(failed > 0)


def unique(items: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(items)]


def run_tests(ids: Sequence[str]) -> dict[str, str]:
    """Results of node ids, in one run of pytest: "passed", or what went wrong."""
    if not ids:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *ids]
        code = subprocess.run(command, cwd=ROOT).returncode
        if not report.exists():
            sys.exit(f"pytest ended with {code} and wrote no report; its lines above say why")
        return {id_: result_of(id_, [*ElementTree.parse(report).iter("testcase")]) for id_ in ids}


def result_of(id_: str, cases: Sequence[ElementTree.Element]) -> str:
    """Of all cases of a node id; that of a file is every test in it."""
    file, _, name = id_.partition("::")
    module = file.removesuffix(".py").replace("/", ".")
    own = [case for case in cases if case.get("classname") == module and name in ("", stem(case.get("name", "")))]
    if not own:
        return "did not run"
    wrong = [case.get("name") for case in own if case.find("failure") is not None or case.find("error") is not None]
    if wrong:
        return f"{id_}: {len(wrong)} of {len(own)} failed, first {wrong[0]}"
    skipped = [case.find("skipped") for case in own]
    if all(each is not None for each in skipped):
        return f"{SKIPPED}: {id_}: {skipped[0].get('message', '')[:100]}"  # type: ignore[union-attr]
    return "passed"


def stem(name: str) -> str:
    return name.partition("[")[0]


def run_command(command: str) -> str:
    words = [sys.executable, *command.split()[1:]]
    code = subprocess.run(words, cwd=ROOT).returncode
    return f"`{command}` ended with {code}" if code else "passed"


def verdict(check: Check, results: dict[str, str]) -> tuple[str, str]:
    """A word, and what is held or what went wrong."""
    found = [results[each] for each in (*check.tests, *check.slow, *check.commands) if each in results]
    wrong = [each for each in found if each != "passed"]
    if failed := [each for each in wrong if not each.startswith(SKIPPED)]:
        return FAILED, "; ".join(failed)
    if wrong:
        return SKIPPED, "; ".join(wrong)
    more = f" (not: {check.lacks})" if check.lacks else ""
    if later := [each for each in (*check.slow, *check.commands) if each not in results]:
        more += f" [not run: {', '.join(later)}]"
    return check.state, check.why_not or check.held + more


# -- the page ----------------------------------------------------------------------------------------------------------


def section(every: Sequence[Check]) -> str:
    """What stands in docs/reliability.md between BEGIN and END."""
    of = {state: [check for check in every if check.state == state] for state in (HELD, PART, NOT, ABSENT)}
    lines = [
        f"Of {len(every)} checks {len(of[HELD])} are held, {len(of[PART])} in part, {len(of[NOT])} not; "
        f"{len(of[ABSENT])} are about what does not exist here.",
        "",
        f"Held: {', '.join(str(check.number) for check in of[HELD])}.",
    ]
    for state in (PART, NOT, ABSENT):
        lines += [
            "",
            f"| {state} | check | why |" if state != PART else f"| {state} | check | not shown |",
            "|---|---|---|",
        ]
        lines += [f"| {check.number} | {check.title} | {check.lacks or check.why_not} |" for check in of[state]]
    return BEGIN + "\n".join(lines) + "\n" + END


def told(text: str) -> str:
    """The section of a page's text."""
    found = re.search(re.escape(BEGIN) + ".*?" + re.escape(END), text, re.S)
    return found[0] if found else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
