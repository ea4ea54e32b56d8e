"""The contracts of pyproject.toml hold: layers, torch, HTTP, sockets; and the server knows only the front."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_contracts() -> None:
    """In a process of its own: the linter turns off the loggers of the process that it runs in."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# What the server may import of ours: the front, its events, the models on this machine, and nouns.
SERVER_MAY = {
    "octavo", "octavo.async_llm", "octavo.beam_search", "octavo.text.events", "octavo.text.best_of", "octavo.request",
    "octavo.sampling_params", "octavo.structured_outputs", "octavo.parameter", "octavo.config", "octavo.vectors",
    "octavo.shelf", "octavo.option", "octavo.stats", "octavo.machine", "octavo.errors", "octavo.logs", "octavo.flow",
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
