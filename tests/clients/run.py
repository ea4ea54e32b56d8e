"""Real clients, unmodified, each in an environment of its own, against a live server of a real model.

python3 dev clients [NAME ...]: installs what is not installed yet below ~/.cache/octavo-clients (OCTAVO_TEST_CLIENTS),
runs the scripts of this folder, records in docs/clients.json what they told, and writes docs/clients.md from it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import real
from tests.server.live import Live

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("OCTAVO_TEST_CLIENTS") or "~/.cache/octavo-clients").expanduser()
RECORD, PAGE = ROOT / "docs" / "clients.json", ROOT / "docs" / "clients.md"
MODEL = "smol"
SECONDS = 2400  # for one client's checks, on a machine that has other work


@dataclass(frozen=True)
class Client:
    """packages: what is installed; the versions of all of them are told. setting: how a user points it here. agent: it
    sends long prompts with tools, so that it gets the larger model. tokenizer: it wants the model's, as a folder."""

    name: str
    script: str
    packages: tuple[str, ...]
    setting: str
    agent: bool = False
    tokenizer: bool = False

    @property
    def is_npm(self) -> bool:
        return self.script.endswith(".mjs")


BASE, BARE = "`base_url` …/v1", "`base_url` without /v1"
CLIENTS = (
    Client("openai (Python)", "py_openai.py", ("openai",), BASE),
    Client("anthropic (Python)", "py_anthropic.py", ("anthropic",), BARE),
    Client("ollama (Python)", "py_ollama.py", ("ollama",), "`OLLAMA_HOST`"),
    Client("openai (npm)", "js_openai.mjs", ("openai",), "`baseURL` …/v1"),
    Client("anthropic (npm)", "js_anthropic.mjs", ("@anthropic-ai/sdk",), "`baseURL` without /v1"),
    Client("ollama (npm)", "js_ollama.mjs", ("ollama",), "`OLLAMA_HOST`"),
    Client(
        "AI SDK", "js_ai_sdk.mjs", ("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic"),
        "`baseURL` …/v1, for all three providers",
    ),
    Client(
        "LangChain", "py_langchain.py", ("langchain-openai", "langchain-ollama", "langchain-anthropic"),
        "`base_url`: …/v1 for OpenAI, without it for the others",
    ),
    Client("LiteLLM", "py_litellm.py", ("litellm",), "`api_base`: …/v1 for openai and hosted_vllm, else without"),
    Client("pydantic-ai", "py_pydantic_ai.py", ("pydantic-ai-slim[openai,anthropic]",), BASE),
    Client(
        "LlamaIndex", "py_llama_index.py", ("llama-index-llms-openai-like", "llama-index-llms-ollama"),
        "`api_base` …/v1, `base_url` for Ollama",
    ),
    Client("llm", "py_llm.py", ("llm", "llm-ollama"), "`api_base` in extra-openai-models.yaml, `OLLAMA_HOST`"),
    Client("OpenAI Agents SDK", "py_openai_agents.py", ("openai-agents",), BASE),
    Client("Haystack", "py_haystack.py", ("haystack-ai",), "`api_base_url` …/v1"),
    Client("shell-gpt", "py_shell_gpt.py", ("shell-gpt", "click"), "`API_BASE_URL` …/v1, `DEFAULT_MODEL`"),
    Client("instructor", "py_instructor.py", ("instructor", "openai"), BASE, agent=True),
    Client("aider", "py_aider.py", ("aider-chat",), "`OPENAI_API_BASE` …/v1, `OLLAMA_API_BASE`", agent=True),
    Client(
        "inspect-ai", "py_inspect_ai.py", ("inspect-ai", "openai"),
        "`OCTAVO_BASE_URL`, `VLLM_BASE_URL`, `OLLAMA_BASE_URL` …/v1", agent=True,
    ),
    Client(
        "lm-eval", "py_lm_eval.py", ("lm-eval[api]", "transformers"), "local-completions: `base_url` …/v1/completions",
        tokenizer=True,
    ),
    Client("Open WebUI", "py_open_webui.py", ("open-webui",), "`OPENAI_API_BASE_URL` …/v1, `OLLAMA_BASE_URL`"),
    Client("guidellm", "py_guidellm.py", ("guidellm",), "`target` without /v1", tokenizer=True),
    Client("Codex", "js_codex.mjs", ("@openai/codex",), "config.toml: `base_url`, `wire_api` responses", agent=True),
    Client("qwen-code", "js_qwen_code.mjs", ("@qwen-code/qwen-code",), "`OPENAI_BASE_URL` …/v1", agent=True),
    Client("opencode", "js_opencode.mjs", ("opencode-ai",), "opencode.json: `baseURL` …/v1", agent=True),
    Client("pi", "js_pi.mjs", ("@mariozechner/pi-coding-agent",), "models.json: `baseUrl` …/v1", agent=True),
    Client(
        "Claude Code", "js_claude.mjs", ("@anthropic-ai/claude-code",), "`ANTHROPIC_BASE_URL` without /v1", agent=True
    ),
    Client("Continue", "js_continue.mjs", ("@continuedev/cli",), "config.yaml: `apiBase` …/v1", agent=True),
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run those that are named, or all; the exit code."""
    exact = {name.lower() for name in names} & {each.name.lower() for each in CLIENTS}  # "pi" is no part of anthropic
    chosen = [each for each in CLIENTS if not names or any(named(each, name.lower(), exact) for name in names)]
    if not chosen:
        sys.exit(f"no client is named so; there are {', '.join(each.name for each in CLIENTS)}")
    wrong = 0
    for agent in (False, True):
        group = [client for client in chosen if client.agent is agent]
        with tempfile.TemporaryDirectory() as state, serving(Path(state), agent) if group else nullcontext("") as url:
            for client in group:
                print(f"clients: {client.name}", flush=True)
                wrong += noted(client, examined(client, url))
    return 1 if wrong else 0


def named(client: Client, word: str, exact: set[str]) -> bool:
    """A whole name stands for itself alone."""
    return client.name.lower() == word if word in exact else word in client.name.lower()


@contextmanager
def serving(state: Path, agent: bool) -> Iterator[str]:
    """A server of the small model, or of the larger one with its whole context; its URL."""
    if agent:
        server = Live(state, "--served-model-name", MODEL, "--max-model-len", "32768", model=real.qwen_half_b())
    else:
        server = Live(state, "--served-model-name", MODEL)
    try:
        yield server.url
    finally:
        server.stop()


def noted(client: Client, told: dict[str, Any]) -> int:
    """Into the record and onto the page; how many checks failed."""
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[client.name] = told
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(record))
    return sum(result != "ok" for result in told["checks"].values())


def examined(client: Client, url: str) -> dict[str, Any]:
    """Versions, and what each check told."""
    folder = CACHE / client.script.partition(".")[0]
    try:
        command, versions = npm(client, folder) if client.is_npm else python(client, folder)
    except subprocess.CalledProcessError as error:
        why = (error.stderr or "").strip().splitlines()[-1:] or ["no reason told"]
        return {"versions": {}, "checks": {"install": f"failed: {why[0][:200]}"}}
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    environment |= {"OCTAVO_URL": url, "OCTAVO_MODEL": MODEL, "NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "none"}
    environment["OCTAVO_LAUNCH"] = json.dumps([sys.executable, "-m", "octavo.cli.main", "launch"])
    if client.tokenizer:
        environment["OCTAVO_TOKENIZER"] = str(real.smollm2_safetensors())
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"versions": versions, "checks": {"script": f"failed: it took more than {SECONDS} s"}}
    checks = {}
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        name, _, why = rest.partition(": ")
        if word in ("ok", "failed") and name:
            checks[name] = "ok" if word == "ok" else f"failed: {why}"
            print(f"  {line}", flush=True)
    if done.returncode or not checks:
        checks["script"] = f"failed: exit {done.returncode}"
        print(done.stderr[-2000:], file=sys.stderr, flush=True)
    return {"versions": versions, "checks": checks}


def python(client: Client, folder: Path) -> tuple[list[str], dict[str, str]]:
    """A virtual environment of its own: the command, and versions."""
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-q", *client.packages]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        (folder / "complete").touch()
    bare = [package.partition("[")[0] for package in client.packages]
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    told = subprocess.run([interpreter, "-c", ask, *bare], check=True, capture_output=True, text=True)
    return [str(interpreter), str(HERE / client.script)], json.loads(told.stdout)


def npm(client: Client, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The same for npm; scripts are copied beside the packages, where their imports look."""
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        words = ["npm", "install", "--no-audit", "--no-fund", "--silent", *client.packages]
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
        (folder / "complete").touch()
    for name in (client.script, "checks.mjs", "js_agents.mjs"):
        shutil.copy(HERE / name, folder / name)
    versions = {
        name: json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
        for name in client.packages
    }
    return ["node", client.script], versions


def page(record: dict[str, Any]) -> str:
    """docs/clients.md."""
    lines = [
        "# Clients", "",
        "Made by `python3 dev clients`: unmodified clients against `octavo serve`, each in an environment of its own:",
        "with SmolLM2-135M-Instruct; coding agents, inspect-ai and instructor with Qwen2.5-Coder-0.5B-Instruct. What",
        "each check does stands in tests/clients/; `launch` is the client started by `octavo launch`.", "",
        "| client | versions | point it here by | checks | result |", "|---|---|---|---|---|",
    ]  # fmt: skip
    faults = []
    for client in CLIENTS:
        told = record.get(client.name)
        if told is None:
            continue
        versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
        good = sum(result == "ok" for result in told["checks"].values())
        names = ", ".join(f"`{name}`" for name in told["checks"])
        lines.append(f"| {client.name} | {versions} | {client.setting} | {names} | {good} of {len(told['checks'])} |")
        faults += [f"- {client.name}, `{name}`: {result}" for name, result in told["checks"].items() if result != "ok"]
    if faults:
        lines += ["", "What fails:", "", *faults]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
