"""How each client is told of a server: files, variables, arguments. Data and small functions; it writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octavo.cli.launch_files import File

KEY = "OCTAVO_API_KEY"  # the variable through which clients get the key, where they read one
ANSWER_SHARE = 4  # of the context, at most a fourth is told to be an answer's length


@dataclass(frozen=True)
class Target:
    """A server: url without /v1, the model's name, its context, the key ("none" where there is none); and the folders
    of clients (settings.client_folders)."""

    url: str
    model: str
    context: int
    key: str
    folders: Mapping[str, Path]

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    @property
    def has_key(self) -> bool:
        return self.key != "none"

    @property
    def answer(self) -> int:
        """Tokens of an answer that a client may count on."""
        return max(256, self.context // ANSWER_SHARE)


@dataclass(frozen=True)
class Setup:
    """command: what is started, before the user's own arguments; empty for no program."""

    command: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()


@dataclass(frozen=True)
class Client:
    """title: for people; install: what to type where its program is missing; agent: sends long prompts with tools."""

    title: str
    install: str
    make: Callable[[Target], Setup]
    agent: bool = False


def _openai(target: Target) -> dict[str, str]:
    return {"OPENAI_BASE_URL": target.v1, "OPENAI_API_KEY": target.key, "OPENAI_MODEL": target.model}


def environment(target: Target) -> Setup:
    """For programs over the SDKs of OpenAI, Anthropic and Ollama."""
    others = {
        "OPENAI_API_BASE": target.v1, "ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_AUTH_TOKEN": target.key,
        "OLLAMA_HOST": target.url,
    }  # fmt: skip
    return Setup((), {**_openai(target), **others})


def codex(target: Target) -> Setup:
    """A profile, which lies over the user's config.toml when it is named."""
    words = json.dumps  # a string of JSON is one of TOML
    lines = [
        f"model = {words(target.model)}",
        'model_provider = "octavo"',
        f"model_context_window = {target.context}",
        "",
        "[model_providers.octavo]",
        'name = "octavo"',
        f"base_url = {words(target.v1)}",
        'wire_api = "responses"',
    ]
    lines += [f"env_key = {words(KEY)}"] if target.has_key else []
    file = File(target.folders["codex"] / "octavo.config.toml", "\n".join(lines) + "\n")
    return Setup(("codex", "--profile", "octavo"), {KEY: target.key} if target.has_key else {}, (file,))


def claude(target: Target) -> Setup:
    """Variables alone; every kind of model it asks for is the one that is served."""
    kinds = ("ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    names = dict.fromkeys((*kinds, "ANTHROPIC_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"), target.model)
    own = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.key,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it changes with each request, and the prefix cache with it
    }
    return Setup(("claude",), {**own, **names})


def opencode(target: Target) -> Setup:
    """A configuration beside the user's own, which the program puts over it."""
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "octavo",
        "options": {"baseURL": target.v1, "apiKey": f"{{env:{KEY}}}" if target.has_key else "none"},
        "models": {target.model: {"name": target.model, "limit": {"context": target.context, "output": target.answer}}},
    }
    made = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"octavo/{target.model}",
        "provider": {"octavo": provider},
    }
    path = target.folders["config"] / "opencode" / "octavo.json"
    variables = {"OPENCODE_CONFIG": str(path), **({KEY: target.key} if target.has_key else {})}
    return Setup(("opencode",), variables, (File(path, _json(made)),))


def qwen(target: Target) -> Setup:
    return Setup(("qwen", "--auth-type", "openai"), _openai(target))


def continue_(target: Target) -> Setup:
    """A configuration that is named to the program; JSON is YAML."""
    model = {
        "name": target.model, "provider": "openai", "model": target.model, "apiBase": target.v1, "apiKey": target.key,
        "roles": ["chat"], "defaultCompletionOptions": {"contextLength": target.context},
    }  # fmt: skip
    path = target.folders["continue"] / "octavo.yaml"
    made = {"name": "octavo", "version": "0.0.1", "schema": "v1", "models": [model]}
    return Setup(("cn", "--config", str(path)), {}, (File(path, _json(made)),))


def pi(target: Target) -> Setup:
    """An entry in models.json, the one file that the program reads for this."""
    model = {
        "id": target.model, "name": target.model, "contextWindow": target.context, "maxTokens": target.answer,
        "reasoning": False, "input": ["text"], "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
    }  # fmt: skip
    made = {"baseUrl": target.v1, "apiKey": target.key, "api": "openai-completions", "models": [model]}
    file = File(target.folders["pi"] / "models.json", _json(made), shared="providers.octavo")
    return Setup(("pi", "--provider", "octavo", "--model", target.model), {}, (file,))


def aider(target: Target) -> Setup:
    variables = {"OPENAI_API_BASE": target.v1, "OPENAI_API_KEY": target.key}
    return Setup(("aider", "--model", f"openai/{target.model}"), variables)


def llm(target: Target) -> Setup:
    """An entry in the list of models of one's own."""
    entry = {"model_id": "octavo", "model_name": target.model, "api_base": target.v1}
    lines = [f"{'- ' if not n else '  '}{key}: {json.dumps(value)}\n" for n, (key, value) in enumerate(entry.items())]
    file = File(target.folders["llm"] / "extra-openai-models.yaml", "".join(lines), shared="yaml")
    return Setup(("llm", "-m", "octavo", *(("--key", target.key) if target.has_key else ())), {}, (file,))


def shell_gpt(target: Target) -> Setup:
    variables = {"API_BASE_URL": target.v1, "DEFAULT_MODEL": target.model, "OPENAI_API_KEY": target.key}
    return Setup(("sgpt",), {**variables, "USE_LITELLM": "false"})


def inspect_ai(target: Target) -> Setup:
    variables = {"INSPECT_EVAL_MODEL": f"openai-api/octavo/{target.model}", "OCTAVO_BASE_URL": target.v1}
    return Setup(("inspect",), {**variables, KEY: target.key})


def lm_eval(target: Target) -> Setup:
    facts = f"model={target.model},base_url={target.v1}/completions,tokenizer_backend=remote"
    command = ("lm_eval", "--model", "local-completions", "--model_args", facts)
    return Setup(command, {"OPENAI_API_KEY": target.key})


def guidellm(target: Target) -> Setup:
    return Setup(("guidellm", "run", "--backend", f"kind=openai_http,target={target.url},model={target.model}"))


def open_webui(target: Target) -> Setup:
    variables = {"OPENAI_API_BASE_URL": target.v1, "OPENAI_API_KEY": target.key, "ENABLE_OLLAMA_API": "false"}
    return Setup(("open-webui", "serve"), variables)


def _json(made: object) -> str:
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


CLIENTS: dict[str, Client] = {
    "env": Client("variables for a shell: eval \"$(octavo launch env)\"", "", environment),
    "codex": Client("Codex CLI (0.134 or newer)", "npm install -g @openai/codex", codex, agent=True),
    "claude": Client("Claude Code", "npm install -g @anthropic-ai/claude-code", claude, agent=True),
    "opencode": Client("opencode", "npm install -g opencode-ai", opencode, agent=True),
    "qwen": Client("qwen-code", "npm install -g @qwen-code/qwen-code", qwen, agent=True),
    "continue": Client("Continue's CLI", "npm install -g @continuedev/cli", continue_, agent=True),
    "pi": Client("pi coding agent", "npm install -g @mariozechner/pi-coding-agent", pi, agent=True),
    "aider": Client("aider", "pip install aider-chat", aider, agent=True),
    "llm": Client("llm", "pip install llm", llm),
    "sgpt": Client("shell-gpt", "pip install shell-gpt", shell_gpt),
    "open-webui": Client("Open WebUI", "pip install open-webui", open_webui),
    "inspect": Client("inspect-ai (eval TASK)", "pip install inspect-ai openai", inspect_ai),
    "lm-eval": Client("lm-evaluation-harness (--tasks TASK)", "pip install lm-eval[api]", lm_eval),
    "guidellm": Client("guidellm (its own --profile, --data …)", "pip install guidellm", guidellm),
}  # fmt: skip
ALSO = {"qwen-code": "qwen", "cn": "continue", "shell-gpt": "sgpt", "inspect-ai": "inspect", "lm_eval": "lm-eval"}
