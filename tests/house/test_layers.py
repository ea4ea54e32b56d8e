"""The contracts of pyproject.toml hold: layers, torch, HTTP, sockets; and the server knows only the front."""

import ast
import contextlib
import io
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[2]


def test_contracts() -> None:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, told.getvalue()


# What the server may import of ours: the front, its events, and nouns.
SERVER_MAY = {
    "octavo", "octavo.async_llm", "octavo.text.events", "octavo.request", "octavo.sampling_params", "octavo.config",
    "octavo.option", "octavo.stats", "octavo.machine", "octavo.errors", "octavo.logs",
}  # fmt: skip


def test_server_imports_the_front_and_nouns_alone() -> None:
    foreign = set()
    for path in (ROOT / "src" / "octavo" / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            foreign |= {
                f"{path.name}: {name}"
                for name in names
                if name.split(".")[0] == "octavo" and not name.startswith("octavo.server") and name not in SERVER_MAY
            }
    assert not foreign
