"""Generated pages are those of the declarations, and say something of each of them."""

import re
from pathlib import Path

import pytest

from octavo.cli.pages import PAGES, declared, operations, write
from octavo.execution.reference import KERNELS
from octavo.sampling_params import SamplingParams

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run: python3 dev docs"


def test_pages_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert (
        {file.name for file in tmp_path.iterdir()}
        == set(PAGES)
        == {Path(line).name for line in capsys.readouterr().out.split()}
    )


def rows(page: str) -> dict[str, list[str]]:
    """First cell, without its quotes -> the other cells, of all tables."""
    found = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            first, *rest = re.split(r"(?<!\\) \| ", line.strip("| "))
            found[first.strip("`")] = rest
    return found


def test_every_field_of_the_parameters_has_a_row() -> None:
    found = rows(PAGES["parameters.md"]())
    assert list(found) == list(SamplingParams.__dataclass_fields__)
    assert found["max_tokens"][0] == "16" and found["detokenize"][0] == "true" and found["seed"][0] == "null"


def test_every_op_has_a_row_with_all_cells() -> None:
    found = rows(operations())
    names = [op.name for _, ops in declared() for op in ops]
    assert sorted(names) == sorted(found) and len(set(names)) == len(names)
    assert {*KERNELS, "attention", "kv_write", "sample"} <= set(names)
    assert all(len(cells) == 6 and all(cells) for cells in found.values())
    assert found["rms_norm"][-1] == "`row.rms_norm`, `tile.rms_norm`" and found["gather_rows"][-1] == "inside `linear`"
