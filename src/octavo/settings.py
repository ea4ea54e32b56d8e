"""Where the value of an option comes from: flag, OCTAVO_ARG_*, other variables, YAML file, default.

The only reader of os.environ. It knows the options of config.py and nothing of what they do.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from octavo.config import EngineConfig, LogConfig, ServerConfig, TextConfig, all_options
from octavo.errors import ConfigError
from octavo.option import options_of

T = TypeVar("T")

# Variables of other servers: not read; each is told once with the option that does it.
FOREIGN: dict[str, str] = {
    "VLLM_API_KEY": "--api-key or OCTAVO_API_KEY",
    "VLLM_CPU_KVCACHE_SPACE": "--kv-cache-memory",
    "VLLM_CPU_OMP_THREADS_BIND": "--threads",
    "VLLM_LOGGING_LEVEL": "--log-level or OCTAVO_LOG_LEVEL",
    "LLAMA_API_KEY": "--api-key or OCTAVO_API_KEY",
    "OLLAMA_HOST": "--host and --port, or --also-listen",
    "OLLAMA_CONTEXT_LENGTH": "--max-model-len",
    "OLLAMA_NUM_PARALLEL": "--max-num-seqs",
    "OLLAMA_KV_CACHE_TYPE": "--kv-cache-dtype",
    "OLLAMA_KEEP_ALIVE": "octavo stop: until then the model stays loaded",
}

_KUBERNETES = re.compile(r"OCTAVO_(SERVICE_(HOST|PORT\w*)|PORT(_\w+)?)")  # injected for a service called "octavo"


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of a process, resolved. `sources` says where each value that is not a default came from."""

    engine: EngineConfig
    text: TextConfig
    server: ServerConfig
    log: LogConfig
    sources: Mapping[str, str] = field(default_factory=dict)  # field name -> "--flag", "OCTAVO_ARG_X", "FILE: key"
    notices: tuple[str, ...] = ()  # one line each, for the start-up summary

    def value(self, name: str) -> object:
        """The value of the option whose field is `name`."""
        nouns = (self.engine, self.text, self.server, self.log)
        return next(getattr(noun, name) for noun in nouns if name in noun.__slots__)


@dataclass(frozen=True, slots=True)
class Client:
    """What `run` and `bench` read where no --url is given, and how plain the terminal wants it."""

    base_url: str | None  # OPENAI_BASE_URL
    api_key: str | None = field(repr=False)  # OPENAI_API_KEY
    plain: bool  # lines instead of bars: CI or TERM=dumb


def client_environment(environ: Mapping[str, str] | None = None) -> Client:
    """The client side of the environment."""
    env = os.environ if environ is None else environ
    plain = env.get("TERM") == "dumb" or bool(env.get("CI")) or bool(env.get("HF_HUB_DISABLE_PROGRESS_BARS"))
    return Client(env.get("OPENAI_BASE_URL") or None, env.get("OPENAI_API_KEY") or None, plain)


def hub_cache(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the hub's cache, as the hub's own library finds it."""
    env = os.environ if environ is None else environ
    home = env.get("HF_HOME") or env.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface"
    return Path(env.get("HF_HUB_CACHE") or home + "/hub").expanduser()


def login_shell(environ: Mapping[str, str] | None = None) -> str:
    """The user's shell, as a path; empty where it is not told."""
    return (os.environ if environ is None else environ).get("SHELL", "")


def client_folders(environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Where other programs keep their configuration: clients of a server, shells."""
    env = os.environ if environ is None else environ
    config = env.get("XDG_CONFIG_HOME") or "~/.config"
    made = {
        "config": config,
        "data": env.get("XDG_DATA_HOME") or "~/.local/share",
        "codex": env.get("CODEX_HOME") or "~/.codex",
        "continue": env.get("CONTINUE_GLOBAL_DIR") or "~/.continue",
        "llm": env.get("LLM_USER_PATH") or f"{config}/io.datasette.llm",
        "pi": env.get("PI_CODING_AGENT_DIR") or "~/.pi/agent",
    }
    return {name: Path(folder).expanduser() for name, folder in made.items()}


def resolve(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `flags` (field name → text or typed value), the environment and the YAML file that they name.

    Precedence: flag, OCTAVO_ARG_*, other variables, file, default. ConfigError names the flag and where it came from.
    """
    env = os.environ if environ is None else environ
    options = {each.name: each for each in all_options()}
    given = dict(flags or {})
    if unknown := next((name for name in given if name not in options), None):
        raise ConfigError(f"unknown option {unknown}.", flag=unknown, nearest=nearest(unknown, options))
    raw: dict[str, tuple[object, str]] = {}
    for name, each in options.items():
        if name in given:
            raw[name] = (given[name], each.flag)
        elif found := next((v for v in each.environment if env.get(v)), None):
            raw[name] = (env[found], found)
    if "config" in raw:
        path = Path(str(raw["config"][0])).expanduser()
        for name, value in read_yaml(path).items():
            raw.setdefault(name, (value, f"{path}: {name.replace('_', '-')}"))
    values = {name: options[name].parse(*found) for name, found in raw.items()}
    said = filter(None, (options[name].notice(*found) for name, found in raw.items()))

    def made(noun: type[T]) -> T:
        return noun(**{each.name: values[each.name] for each in options_of(noun) if each.name in values})

    return Settings(
        made(EngineConfig),
        made(TextConfig),
        made(ServerConfig),
        made(LogConfig),
        sources={name: source for name, (_, source) in raw.items()},
        notices=(*environment_notices(env), *said),
    )


def read_yaml(path: Path) -> dict[str, object]:
    """A mapping of options to values from a YAML file, by field name; keys are flags with or without their dashes."""
    import yaml  # 28 ms, needed by few

    try:
        with open(path, encoding="utf-8") as stream:
            made = yaml.safe_load(stream) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}", flag="--config") from None
    if not isinstance(made, dict):
        raise ConfigError(f"--config {path}: expected a mapping of options to values.", flag="--config")
    known = {each.name.replace("_", "-"): each.name for each in all_options() if each.name != "config"}
    for each in all_options():
        known.update({alias.lstrip("-"): each.name for alias in each.aliases})
    values: dict[str, object] = {}
    for key, value in made.items():
        word = str(key).lstrip("-").replace("_", "-")
        if word not in known:
            raise ConfigError(f"{path}: unknown key {key!r}.", flag=str(key), nearest=nearest(word, known))
        values[known[word]] = value
    return values


def environment_notices(env: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each variable that is set but not read: other servers' ones, and unknown OCTAVO_* ones."""
    known = {variable for each in all_options() for variable in each.environment}
    lines = []
    for name in sorted(env):
        if name in FOREIGN:
            lines.append(f"{name} is not read; use {FOREIGN[name]}")
        elif name.startswith("LLAMA_ARG_"):
            lines.append(f"{name} is not read; use OCTAVO_ARG_{name.removeprefix('LLAMA_ARG_')} or the flag")
        elif name.startswith("OCTAVO_") and name not in known and not _KUBERNETES.fullmatch(name):
            close = nearest(name, known)
            lines.append(f"{name} is not a variable of octavo" + (f"; did you mean {close}?" if close else ""))
    return tuple(lines)


def nearest(word: str, known: Mapping[str, object] | set[str]) -> str | None:
    """The known name closest to `word`, if any is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
