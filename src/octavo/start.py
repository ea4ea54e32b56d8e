"""A name and options -> AsyncLLM: in this process for `LLM`, or over a supervised engine process for `serve`.

It finds the files, starts the engine, and builds what the front needs beside it: tokenizer, chat template, sampling
defaults. What only the front needs is imported when the engine's process runs already, so that the two start side by
side. It decides nothing of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.checkpoints.catalogue import entry_named
from octavo.checkpoints.families import FAMILIES
from octavo.checkpoints.sources import ModelFiles, resolve
from octavo.config import EngineConfig, LogConfig, TextConfig
from octavo.engine.client import EngineClient
from octavo.engine.supervisor import EngineProcess, Supervisor
from octavo.errors import ConfigError, UnsupportedModel
from octavo.settings import Settings, hub_cache
from octavo.settings import resolve as resolve_options

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM
    from octavo.checkpoints.checkpoint import Checkpoint
    from octavo.text.conversation import Ways

DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # as vLLM takes from generation_config
Progress = Callable[[str, int, int], None]  # what, done, in all


@dataclass(frozen=True)
class Served:
    """A model behind a supervised engine process."""

    llm: AsyncLLM
    supervisor: Supervisor
    files: ModelFiles


def find_model(config: EngineConfig, progress: Progress | None = None) -> ModelFiles:
    """The files of --model, downloaded if need be. Raises UnsupportedModel before a download that would be in vain."""
    entry = entry_named(config.model)
    if entry is not None and entry.hub and entry.family not in FAMILIES:
        raise UnsupportedModel(f"{entry.name} is of the family {entry.family}, which is not built yet", param="model")
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
    return await asyncio.to_thread(lambda: _texts(files, settings)(client))


async def start_served(
    settings: Settings, progress: Progress | None = None, meanwhile: Callable[[], object] = lambda: None
) -> Served:
    """For `serve`: an engine process under a supervisor. meanwhile: done in a thread while it loads, as are tokenizer
    and templates."""
    files = await asyncio.to_thread(find_model, settings.engine, progress)
    supervisor = Supervisor(engine_process(files, settings))

    def prepare() -> Callable[[EngineClient], AsyncLLM]:
        meanwhile()
        return _texts(files, settings)

    engine = asyncio.create_task(supervisor.start())
    await asyncio.sleep(0)  # the process is made before this one is busy
    front = asyncio.create_task(asyncio.to_thread(prepare))
    try:
        client, put_before = await asyncio.gather(engine, front)
    except BaseException:
        engine.cancel()
        front.cancel()
        await asyncio.gather(engine, front, return_exceptions=True)
        await supervisor.stop(0.0)
        raise
    return Served(put_before(client), supervisor, files)


def engine_process(files: ModelFiles, settings: Settings) -> EngineProcess:
    """How the supervisor starts this model's engine: plain data for engine.startup.set_up_from."""
    options = {"path": str(files.path), "name": model_name(files, settings), "config": asdict(settings.engine)}
    log: LogConfig = settings.log
    return EngineProcess(
        "octavo.engine.startup:set_up_from", options, settings.engine.max_num_seqs, log.log_level, log.log_json,
        crashes=settings.engine.state_path / "crashes", crash_prompts=settings.log.crash_prompts,
    )  # fmt: skip


def model_name(files: ModelFiles, settings: Settings) -> str:
    """The name that answers carry: --served-model-name, else what the user typed or the file is called."""
    return settings.server.served_model_name[0] if settings.server.served_model_name else files.names[0]


def _texts(files: ModelFiles, settings: Settings) -> Callable[[EngineClient], AsyncLLM]:
    """All that the front needs beside an engine: the function that puts it before one."""
    from octavo.async_llm import AsyncLLM
    from octavo.checkpoints.checkpoint import open_checkpoint
    from octavo.checkpoints.pooling import pooling_of
    from octavo.text.conversation import Conversations
    from octavo.text.prompt import PromptTemplate
    from octavo.tokenizer.tokenizer import Tokenizer

    checkpoint, text = open_checkpoint(files.path), settings.text
    if files.generation:  # what the file itself states stands over the catalogue
        checkpoint = replace(checkpoint, generation_config={**files.generation, **checkpoint.generation_config})
    tokenizer = Tokenizer.from_checkpoint(checkpoint, settings.engine.cache_path / "tokenizer")
    tokenizer.visible_bytes()  # now, not before the first token: 50 ms for 150,000 tokens
    template = PromptTemplate.of_tokenizer(tokenizer, _template_text(text.chat_template), text.default_chat_template)
    renderer = Conversations(template, _ways(text), text.default_chat_template_kwargs)
    defaults = sampling_defaults(checkpoint, text)
    pooling = pooling_of(checkpoint, settings.engine.task, settings.engine.pooling)
    return lambda client: AsyncLLM(client, tokenizer, renderer, defaults, pooling)


def _ways(text: TextConfig) -> Ways:
    """What the operator says of calls and reasoning."""
    from octavo.text.conversation import Ways

    on = None if text.reasoning == "auto" else text.reasoning == "on"
    return Ways(text.tool_call_parser, text.reasoning_parser, on, text.reasoning_budget)


def _template_text(given: str | None) -> str | None:
    """--chat-template: a file's content, or the template itself. Raises ConfigError for a file that is not there."""
    if given is None or "{" in given or "\n" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"--chat-template {given}: {why}.", flag="--chat-template") from None


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
    own["grammar_close"] = text.grammar_close or None
    return made | {name: value for name, value in own.items() if value is not None}
