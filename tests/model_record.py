"""Which models the tests ran: seen, not declared. `pytest -n0 --record-models tests/...` writes docs/models.json.

Every Checkpoint that a test makes is noted, and kept when the test passes: its family, formats, and whether its weights
are real ones (of tests/real.py) or random. What was recorded for the test files of this run is replaced, the rest
stays. `python3 dev docs` makes docs/models.md of it; a new family or format needs no line here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoints.checkpoint import Checkpoint
from tests import real

RECORD = Path(__file__).parents[1] / "docs" / "models.json"
Seen = tuple[tuple[str, object], ...]


class Recorder:
    """The plugin of one run."""

    def __init__(self) -> None:
        self.opened: list[Seen] = []
        self.passed: dict[str, set[Seen]] = {}  # test file -> what its passed tests opened
        made = Checkpoint.__init__

        @functools.wraps(made)
        def init(checkpoint: Checkpoint, *args: Any, **kwargs: Any) -> None:
            made(checkpoint, *args, **kwargs)
            self.opened.append(seen(checkpoint))

        Checkpoint.__init__ = init  # type: ignore[method-assign]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.opened.clear()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.setdefault(report.nodeid.partition("::")[0], set()).update(self.opened)

    def pytest_sessionfinish(self) -> None:
        kept = [each for each in read(RECORD) if each["suite"] not in self.passed]
        found = [{"suite": suite, **dict(each)} for suite, models in self.passed.items() for each in models]
        every = sorted([*kept, *found], key=lambda each: json.dumps(each, sort_keys=True))
        lines = ",\n".join(json.dumps(each, sort_keys=True) for each in every)
        RECORD.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def seen(checkpoint: Checkpoint) -> Seen:
    """What the page tells of a checkpoint: real weights by their name, random ones without."""
    folder = real.FOLDER.resolve()
    is_real = folder in checkpoint.path.resolve().parents
    return tuple(
        {
            "family": str(checkpoint.config.get("model_type")),
            "file": checkpoint.kind,
            "formats": " ".join(sorted({tensor.format for tensor in checkpoint.tensors.values()})),
            "weights": "real" if is_real else "random",
            "model": checkpoint.display_name if is_real else "",
        }.items()
    )


def read(path: Path) -> list[dict[str, str]]:
    """The record; [] where there is none yet."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
