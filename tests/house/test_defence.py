"""What the package's sources never do: read pickles, evaluate text, wait by the wall clock."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "octavo"
# multiprocessing pickles what goes from process to process
PICKLING = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
EVALUATING = {"eval", "exec", "compile", "__import__"}
# Files that may ask what time it is: dates that are told, days of quotas, the day that a batch has, ages of files.
DATES = {
    "cli/listing.py", "cli/ps.py", "execution/packed_file.py", "server/openai/batch_run.py", "server/openai/files.py",
    "server/openai/responses.py", "server/openai/wire.py", "server/quota.py", "server/submit.py", "server/tracing.py",
}  # fmt: skip


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.relative_to(SOURCE).as_posix(), node


def test_nothing_unpickles_or_evaluates() -> None:
    found = []
    for file, node in nodes():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EVALUATING:
            found.append(f"{file}: {node.func.id}()")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append(f"{file}: allow_pickle")
        found += [f"{file}: import {name}" for name in names if name.split(".")[0] in PICKLING]
    assert not found


def test_waits_do_not_follow_the_wall_clock() -> None:
    """Limits of time are counted on the monotonic clock: nobody is early or late when the machine's clock is set."""
    readers = {
        file
        for file, node in nodes()
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns"))
        or (isinstance(node, ast.ImportFrom) and node.module == "time" and "time" in {a.name for a in node.names})
    }
    assert readers == DATES
