"""A name and options -> AsyncLLM: in this process for `LLM`, or over a supervised engine process for `serve`.

It finds the files, starts the engine, and builds what the front needs beside it: tokenizer, chat template, sampling
defaults. It decides nothing of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from octavo.async_llm import AsyncLLM
from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.checkpoints.sources import ModelFiles, resolve
from octavo.config import EngineConfig, LogConfig, Settings, TextConfig, hub_cache
from octavo.config import resolve as resolve_options
from octavo.engine.client import EngineClient
from octavo.engine.supervisor import EngineProcess, Supervisor
from octavo.errors import ConfigError
from octavo.text.prompt import PromptTemplate
from octavo.tokenizer.tokenizer import Tokenizer

DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # as vLLM takes from generation_config
Progress = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True)
class Served:
    """A model behind a supervised engine process."""

    llm: AsyncLLM
    supervisor: Supervisor
    files: ModelFiles


def find_model(config: EngineConfig, progress: Progress | None = None) -> ModelFiles:
    """The files of --model, downloaded if need be."""
    folder = Path(config.download_dir).expanduser() if config.download_dir else hub_cache()
    return resolve(
        config.model, cache_dir=config.cache_path, offline=config.offline, revision=config.revision, hub_cache=folder,
        progress=progress,
    )  # fmt: skip


async def start_in_process(
    model: str | None = None, options: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> AsyncLLM:
    """For `LLM`: the engine in a thread of this process. options: fields of config.py."""
    from octavo.engine.startup import set_up  # the engine's side: a server's front never imports it

    flags = dict(options or {}) if model is None else {**(options or {}), "model": model}
    settings = resolve_options(flags)
    files = await asyncio.to_thread(find_model, settings.engine, progress)
    setup = await asyncio.to_thread(set_up, files.path, model_name(files, settings), settings.engine, progress)
    client = await EngineClient.in_process(setup)
    return await asyncio.to_thread(_front, client, files, settings.text, settings.engine.cache_path)


async def start_served(settings: Settings, progress: Progress | None = None) -> Served:
    """For `serve`: an engine process under a supervisor; the tokenizer is built while it loads."""
    files = await asyncio.to_thread(find_model, settings.engine, progress)
    supervisor = Supervisor(engine_process(files, settings))
    tokenizer = asyncio.create_task(asyncio.to_thread(_tokenizer, files, settings.engine.cache_path))
    try:
        client = await supervisor.start()
        checkpoint, made = await tokenizer
        llm = await asyncio.to_thread(_front_of, client, checkpoint, made, settings.text)
    except BaseException:
        tokenizer.cancel()
        await supervisor.stop(0.0)
        raise
    return Served(llm, supervisor, files)


def engine_process(files: ModelFiles, settings: Settings) -> EngineProcess:
    """How the supervisor starts this model's engine: plain data for engine.startup.set_up_from."""
    options = {"path": str(files.path), "name": model_name(files, settings), "config": asdict(settings.engine)}
    log: LogConfig = settings.log
    return EngineProcess(
        "octavo.engine.startup:set_up_from", options, settings.engine.max_num_seqs, log.log_level, log.log_json
    )


def model_name(files: ModelFiles, settings: Settings) -> str:
    """The name that answers carry: --served-model-name, else what the user typed or the file is called."""
    return settings.server.served_model_name[0] if settings.server.served_model_name else files.names[0]


def _tokenizer(files: ModelFiles, cache: Path) -> tuple[Checkpoint, Tokenizer]:
    checkpoint = open_checkpoint(files.path)
    if files.generation:  # what the file itself states stands over the catalogue
        checkpoint = replace(checkpoint, generation_config={**files.generation, **checkpoint.generation_config})
    return checkpoint, Tokenizer.from_checkpoint(checkpoint, cache / "tokenizer")


def _front(client: EngineClient, files: ModelFiles, text: TextConfig, cache: Path) -> AsyncLLM:
    return _front_of(client, *_tokenizer(files, cache), text)


def _front_of(client: EngineClient, checkpoint: Checkpoint, tokenizer: Tokenizer, text: TextConfig) -> AsyncLLM:
    template = _template_text(text.chat_template) or checkpoint.chat_template
    renderer = PromptTemplate.of_tokenizer(tokenizer, template, text.default_chat_template)
    return AsyncLLM(client, tokenizer, renderer, sampling_defaults(checkpoint, text))


def _template_text(given: str | None) -> str | None:
    """--chat-template: a file's content, or the template itself. Raises ConfigError for a file that is not there."""
    if given is None or "{" in given or "\n" in given:
        return given
    try:
        return Path(given).expanduser().read_text()
    except OSError as error:
        raise ConfigError(f"--chat-template {given}: {error.strerror}.", flag="--chat-template") from None


def sampling_defaults(checkpoint: Checkpoint, text: TextConfig) -> dict[str, Any]:
    """For requests that leave a parameter out: the model's generation config, then the operator's options over it."""
    stated: Mapping[str, Any] = {}
    if text.generation_config == "auto":
        stated = checkpoint.generation_config
    elif text.generation_config != "none":
        file = Path(text.generation_config).expanduser() / "generation_config.json"
        try:
            stated = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--generation-config: cannot read {file}: {error}.", flag="--generation-config"
            ) from None
    stated = {**stated, **(text.override_generation_config or {})}
    made = {name: stated[name] for name in DEFAULTED if stated.get(name) is not None}
    own = {name: getattr(text, name) for name in ("temperature", "top_p", "top_k", "min_p", "seed")}
    return made | {name: value for name, value in own.items() if value is not None}
