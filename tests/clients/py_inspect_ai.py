"""inspect-ai: a task with and without functions, over its three providers for servers of one's own."""

import json
import sys
import tempfile
from pathlib import Path

from checks import MODEL, URL, check, launched, ran

FOLDER = Path(tempfile.mkdtemp())
TASKS = '''
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool

SAMPLES = [Sample(input=f"How much is {n} + {n}? Answer with a number.", target=str(2 * n)) for n in range(2, 6)]


@tool
def add():
    async def execute(x: int, y: int):
        """Add two numbers.

        Args:
            x: First number to add.
            y: Second number to add.
        """
        return x + y

    return execute


@task
def plain():
    return Task(dataset=SAMPLES, solver=generate(), scorer=includes())


@task
def functions():
    return Task(dataset=SAMPLES[:2], solver=[use_tools(add()), generate()], scorer=includes(), message_limit=6)
'''
(FOLDER / "tasks.py").write_text(TASKS)
ENVIRONMENT = {
    "HOME": str(FOLDER), "OCTAVO_BASE_URL": URL + "/v1", "OCTAVO_API_KEY": "none",
    "VLLM_BASE_URL": URL + "/v1", "VLLM_API_KEY": "none", "OLLAMA_BASE_URL": URL + "/v1",
}  # fmt: skip


def words(task, name):
    logs = FOLDER / name
    common = ("--max-tokens", "100", "--display", "plain", "--log-format", "json", "--log-dir", str(logs))
    return logs, ("eval", f"tasks.py@{task}", *common)


def right(logs, calls=False):
    """Every sample was answered and scored. calls: at least one function was called and its result given back."""
    (file,) = logs.glob("*.json")
    log = json.loads(file.read_text())
    assert log["status"] == "success", log.get("error")
    assert all(sample["scores"] and sample["output"]["choices"] for sample in log["samples"])
    said = [message for sample in log["samples"] for message in sample["messages"]]
    assert not calls or any(message["role"] == "tool" for message in said), "no function was called"


def evaluated(task, model, name, calls=False):
    logs, rest = words(task, name)
    ran(Path(sys.executable).with_name("inspect"), *rest, "--model", model, env=ENVIRONMENT, cwd=FOLDER)
    right(logs, calls)


@check
def openai_api():
    evaluated("plain", f"openai-api/octavo/{MODEL}", "openai_api")


@check
def functions():
    evaluated("functions", f"openai-api/octavo/{MODEL}", "functions", calls=True)


@check
def vllm():
    evaluated("plain", f"vllm/{MODEL}", "vllm")


@check
def ollama():
    evaluated("plain", f"ollama/{MODEL}", "ollama")


@check
def launch():
    logs, rest = words("plain", "launch")
    launched("inspect", *rest, cwd=FOLDER)
    right(logs)
