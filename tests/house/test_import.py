"""Importing octavo does no work: under 100 ms, and without the heavy libraries."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "starlette", "uvicorn", "huggingface_hub", "tokenizers", "rich", "jinja2")
SERVING_MAY_NOT = ("torch", "transformers", "gguf", "safetensors", "pydantic")


def in_new_process(code: str) -> dict[str, float | list[str]]:
    """Run code in a fresh interpreter; its last expression is `told`, a dictionary."""
    program = f"import json, sys, time\n{code}\nprint(json.dumps(told))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made: dict[str, float | list[str]] = json.loads(done.stdout.splitlines()[-1])
    return made


def test_import_is_quick() -> None:
    code = "start = time.perf_counter(); import octavo; told = {'seconds': time.perf_counter() - start}"
    best = min(float(in_new_process(code)["seconds"]) for _ in range(5))  # the least disturbed of five
    assert best < 0.1


def test_import_loads_nothing_heavy() -> None:
    code = f"import octavo; told = {{'loaded': [m for m in {HEAVY!r} if m in sys.modules]}}"
    assert in_new_process(code)["loaded"] == []


@pytest.mark.parametrize("module", ["octavo.cli.main", "octavo.engine.core", "octavo.server.app", "octavo.llm"])
def test_serving_needs_neither_torch_nor_transformers(module: str) -> None:
    code = f"import {module}; told = {{'loaded': [m for m in {SERVING_MAY_NOT!r} if m in sys.modules]}}"
    assert in_new_process(code)["loaded"] == []
