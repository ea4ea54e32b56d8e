"""docs/conventions.md: every section of the rules is there, and every test that it names."""

import re
from pathlib import Path

import pytest

from tests.house.test_reliability import marks_in

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
FOLDERS = {"S": "tests/server", "T": "tests/text"}
HEADS = ("| rule |", "| what breaks |")
ROWS = [row for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith(HEADS)]


def test_every_section_is_there() -> None:
    told = {number for heading in re.findall(r"^## .*\((.*)\)$", PAGE, re.M) for number in heading.split(", ")}
    assert told == {f"3.{number}" for number in range(1, 9)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_a_rule_has_its_tests(row: str) -> None:
    named = re.findall(r"`([ST]) (\w+\.py)(?:::(\w+))?`", row)
    assert named and row.rstrip(" |").endswith("`"), "the last cell names its tests"
    for folder, file, name in named:
        found = marks_in(f"{FOLDERS[folder]}/{file}")
        assert found and (not name or name in found), f"no test {folder} {file}::{name}"
