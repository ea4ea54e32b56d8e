"""Lengths of files and functions, numbers of arguments, names, reads of the environment; exceptions with reasons."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES, ARGUMENTS, LAYER_ARGUMENTS = 400, 60, 8, 10
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}

# "path" or "path:function" → why it may be longer.
EXCEPTIONS: dict[str, str] = {
    "src/octavo/ops/attention.py:attention": "the operands and attributes of an op are its signature",
}


def sources(*endings: str) -> list[Path]:
    found = [ROOT / "dev"] if "" in endings else []
    for folder in ("src", "native", "tests", "bench"):
        found += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in endings and path.suffix]
    return [path for path in found if "build" not in path.relative_to(ROOT).parts]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions() -> Iterator[tuple[Path, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sources("", ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, f"{relative(path)}:{node.name}", node


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return sum(each is not None and each.arg not in ("self", "cls") for each in every)


def test_files_are_short() -> None:
    long = {}
    for path in sources("", ".py", ".cc", ".h", ".js", ".css", ".html"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES and relative(path) not in EXCEPTIONS:
            long[relative(path)] = lines
    assert not long, f"over {FILE_LINES} lines: {long}"


def test_functions_are_short() -> None:
    long = {
        name: node.end_lineno - node.lineno + 1
        for _, name, node in functions()
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES and name not in EXCEPTIONS
    }
    assert not long, f"over {FUNCTION_LINES} lines: {long}"


def test_functions_take_few_arguments() -> None:
    many = {}
    for path, name, node in functions():
        is_layer = "layers" in path.parts and node.name == "__init__"
        if arguments(node) > (LAYER_ARGUMENTS if is_layer else ARGUMENTS) and name not in EXCEPTIONS:
            many[name] = arguments(node)
    assert not many, f"over {ARGUMENTS} arguments: {many}"


def test_names_say_something() -> None:
    vague = [
        relative(path)
        for path in sources(".py", ".cc", ".h")
        if {path.stem.lower(), *path.parent.relative_to(ROOT).parts} & FORBIDDEN_NAMES
    ]
    assert not vague


def test_environment_is_read_in_settings_alone() -> None:
    readers = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_os = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            from_os = isinstance(node, ast.ImportFrom) and node.module == "os"
            names = {alias.name for alias in node.names} if from_os else {node.attr} if is_os else set()
            if names & {"environ", "environb", "getenv", "putenv"}:
                readers.append(relative(path))
    assert readers, "settings.py reads the environment, so the search is broken"
    assert set(readers) == {"src/octavo/settings.py"}


def test_every_file_opens_with_what_it_does() -> None:
    silent = []
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            silent.append(relative(path))
    assert not silent


def test_exceptions_are_needed() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in sources("", ".py", ".cc", ".h", ".js")}
    needed = {path for path, lines in lengths.items() if lines > FILE_LINES}
    for _, name, node in functions():
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES or arguments(node) > ARGUMENTS:
            needed.add(name)
    assert set(EXCEPTIONS) <= needed, "exceptions that nothing needs any more"
    assert all(len(reason) > 20 for reason in EXCEPTIONS.values())
