"""A cache with the default model, and a server over it, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import real
from tests.cli.command_line import Serving


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the default model already, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").mkdir()
    (folder / "models" / real.smollm2().name).symlink_to(real.smollm2())
    return folder


@pytest.fixture(scope="session")
def serving(home: Path) -> Iterator[Serving]:
    made = Serving(home, "--jinja", OLLAMA_NUM_PARALLEL="4")
    yield made
    if made.process.poll() is None:
        made.end()
