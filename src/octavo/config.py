"""Every option once.

Flags, help, YAML and docs are made from these fields. A value of None is an "auto" that start-up decides once. It knows
no model and no machine, not where a value comes from (settings.py), and it does nothing when imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.option import (
    Kind,
    Option,
    check,
    choice,
    count,
    json_object,
    milliseconds,
    number,
    option,
    options_of,
    read_count,
    seconds,
    size,
    switch,
    text,
    texts,
)

MODEL, MEMORY, BATCH, MACHINE = "Model", "Memory", "Batching", "Machine"
SPECULATION = "Speculation"
SERVER, TEXT, SAMPLING, LOGS = "Server", "Text", "Sampling defaults", "Logs"
DEFAULT_MODEL = "smollm2:135m"
LOCALHOST = ("http://localhost:*", "http://127.0.0.1:*", "https://localhost:*", "https://127.0.0.1:*")


def _first_count(value: object) -> int:
    """OMP_NUM_THREADS may be a list, one number for each nesting level: the first counts."""
    return read_count(str(value).split(",")[0])


# fmt: off
@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine is given: the model, its memory, its batches. Crosses the private socket as it is."""

    model: str = option(
        DEFAULT_MODEL, text("MODEL"), "folder, .gguf file, hub id (org/name:Q4_K_M) or catalogue name", MODEL,
        aliases=("-m", "--model-path", "-hf", "--hf-repo"),
    )
    revision: str | None = option(None, text("REV", auto=True), "branch, tag or commit on the hub", MODEL, rare=True)
    download_dir: str | None = option(
        None, text("DIR", auto=True), "folder of hub downloads (default: the hub's cache)", MODEL, rare=True
    )
    offline: bool = option(
        False, switch(), "never use the network", MODEL, env=("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    dtype: str = option(
        "auto", choice("auto", "float16", "bfloat16", "float32", half="float16", float="float32"),
        "type of unquantized weights; auto keeps the file's", MODEL, rare=True,
    )
    task: str = option(
        "auto", choice("auto", "generate", "embed", "score", embedding="embed", rank="score", classify="score"),
        "what the model gives: text, vectors, or scores of its classification head; auto: what its files say", MODEL,
    )
    pooling: str = option(
        "auto", choice("auto", "mean", "cls", "last", "rank"),
        "how rows become a vector; auto: what the model's files say; rank: the classification head", MODEL,
        aliases=("--pooling-type",), rare=True,
    )
    quantization: str = option(
        "auto", choice("auto", "int8", "q4", none="auto", q8_0="int8", q4_1="q4"),
        "round float weights while loading; auto keeps the file's", MODEL, aliases=("-q", "--quant"),
    )
    max_model_len: int | None = option(
        None, count(16, auto=True, unit="tokens"), "context length; auto: the model's, reduced to what fits", MEMORY,
        aliases=("--ctx-size", "-c", "--context-length"),
    )
    gpu_memory_utilization: float | None = option(
        None, number(0.05, 1.0, auto=True), "share of the available memory for everything; auto: 0.85 on a CPU", MEMORY,
        aliases=("--device-memory-utilization", "--mem-fraction-static"),
    )
    kv_cache_memory: int | None = option(
        None, size(1 << 20, auto=True), "memory of the KV cache; auto: from the plan", MEMORY,
        aliases=("--kv-cache-memory-bytes",),
    )
    kv_cache_dtype: str = option(
        "auto",
        choice(
            "auto", "bf16", "fp16", "float32", "int8", bfloat16="bf16", f16="fp16", half="fp16", float16="fp16",
            fp32="float32", f32="float32", q8_0="int8", notices=(("q8_0", "int8, a scale per token and head"),),
        ), "type of the KV cache; auto: bf16; int8: half of its memory, with a scale per token and head", MEMORY,
        aliases=("-ctk", "--cache-type-k"),
    )
    block_size: int = option(
        16, count(16, 64, unit="tokens: 16, 32 or 64"), "tokens of one KV block", MEMORY,
        aliases=("--page-size",), rare=True,
    )
    enable_prefix_caching: bool = option(
        True, switch(), "reuse the KV of equal beginnings", MEMORY,
        negations=("--disable-radix-cache", "--no-cache-prompt"),
    )
    max_num_seqs: int = option(
        64, count(1, 4096), "requests computed at once; never divides the context", BATCH,
        aliases=("--max-running-requests", "-np", "--parallel"),
    )
    max_num_batched_tokens: int = option(
        512, count(32, 65536, unit="tokens"), "upper bound of tokens in a step", BATCH,
        aliases=("--chunked-prefill-size", "-b", "--batch-size"),
    )
    max_num_queued_reqs: int = option(
        1024, count(0), "requests that may wait; beyond: 429 with Retry-After", BATCH,
        aliases=("--max-queued-requests",), rare=True,
    )
    step_time: float = option(100.0, milliseconds(1.0, 60_000.0), "time budget of a step, in milliseconds", BATCH)
    spec_method: str = option(
        "off", choice("off", "ngram", "suffix", none="off"), "guess ids from prompt and answer; changes no token",
        SPECULATION,
    )
    spec_tokens: int = option(
        15, count(1, 64), "most guessed ids of a request in a step", SPECULATION,
        aliases=("--draft-max", "--draft", "--draft-n"), rare=True,
    )
    speculative_config: dict[str, Any] | None = option(
        None, json_object(), "the same in vLLM's words: method, num_speculative_tokens, prompt_lookup_max and _min",
        SPECULATION, rare=True,
    )
    threads: int | None = option(
        None, count(1, 1024, auto=True), "threads; auto: physical cores within the affinity mask and quota", MACHINE,
        aliases=("-t",),
    )
    thread_limit: int | None = option(
        None, Kind("N", "a whole number", _first_count, auto=True), "upper bound when --threads is auto", MACHINE,
        env=("OMP_NUM_THREADS",), rare=True,
    )
    isa: str = option(
        "auto", choice("auto", "amx", "avx512bf16", "avx512", "avx2", "portable"), "instruction set of the kernels",
        MACHINE, env=("OCTAVO_ISA",), rare=True,
    )
    cache_dir: str = option(
        "~/.cache/octavo", text("DIR"), "models, tokenizers and packed weights", MACHINE,
        env=("OCTAVO_CACHE",), rare=True,
    )
    packed_cache: str = option(
        "auto", choice("auto", "on", "off"),
        "keep packed weights in the cache folder: later starts map them; auto: from 512 MiB on", MACHINE, rare=True,
    )
    autotune: str = option(
        "auto", choice("auto", "on", "off"),
        "values for this processor that change no token; auto: measured at a model's first start (0.1 to 0.4 s), on: "
        "anew", MACHINE, rare=True,
    )
    state_dir: str = option(
        "~/.local/state/octavo", text("DIR"), "the secret of this installation", MACHINE,
        env=("OCTAVO_STATE",), rare=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.block_size not in (16, 32, 64):
            raise ConfigError(f"--block-size: expected 16, 32 or 64, got {self.block_size}.", flag="--block-size")

    @property
    def cache_path(self) -> Path:
        """The cache folder with ~ expanded."""
        return Path(self.cache_dir).expanduser()

    @property
    def state_path(self) -> Path:
        """The state folder with ~ expanded."""
        return Path(self.state_dir).expanduser()


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What turns conversations into prompts and fills what a request leaves out."""

    chat_template: str | None = option(
        None, text("FILE|TEXT", auto=True), "chat template, as a file or as text; auto: the model's", TEXT,
        aliases=("--chat-template-file",),
    )
    default_chat_template: bool = option(True, switch(), "a plain template for a model without one", TEXT, rare=True)
    default_chat_template_kwargs: dict[str, Any] | None = option(
        None, json_object(), "variables for the chat template, under those of a request", TEXT,
        aliases=("--chat-template-kwargs",), rare=True,
    )
    tool_call_parser: str = option(
        "auto", text("NAME|none"), "how the model writes calls; auto: as its template does", TEXT, rare=True
    )
    reasoning_parser: str = option(
        "auto", text("NAME|none"), "how the model marks reasoning; auto: as its template does", TEXT, rare=True
    )
    reasoning: str = option(
        "auto", choice("auto", "on", "off"), "reasoning where a request does not say; auto: the model's own way", TEXT
    )
    reasoning_budget: int | None = option(
        None, count(0, auto=True, unit="tokens"), "end reasoning after so many; auto: no limit, 0: none", TEXT,
        rare=True,
    )
    generation_config: str = option(
        "auto", text("auto|none|DIR"), "the model's sampling defaults: use, ignore, or from a folder", SAMPLING,
        rare=True,
    )
    override_generation_config: dict[str, Any] | None = option(
        None, json_object(), "sampling defaults over the model's own", SAMPLING, rare=True
    )
    temperature: float | None = option(
        None, number(0.0, auto=True), "default temperature", SAMPLING, aliases=("--temp",)
    )
    top_p: float | None = option(None, number(0.0, 1.0, auto=True), "default top_p", SAMPLING)
    top_k: int | None = option(None, count(0, auto=True), "default top_k", SAMPLING)
    min_p: float | None = option(None, number(0.0, 1.0, auto=True), "default min_p", SAMPLING)
    seed: int | None = option(None, count(0, 2**63 - 1, auto=True), "default seed", SAMPLING)
    grammar_close: bool = option(
        False, switch(), "end structured output in time where its tokens run out; requests may say otherwise",
        SAMPLING, rare=True,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How events are written. Both processes get it."""

    log_level: str = option(
        "info", choice("debug", "info", "warning", "error", warn="warning", critical="error"),
        "least severe line that is written", LOGS, env=("OCTAVO_LOG_LEVEL",),
    )
    log_json: bool = option(False, switch(), "one JSON object a line", LOGS, aliases=("--log-jsonl",), rare=True)
    crash_prompts: bool = option(
        False, switch(), "the prompts' token ids in the report of an engine's death", LOGS, rare=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the HTTP front is given."""

    host: str = option("127.0.0.1", text("ADDRESS"), "address, or a path that ends in .sock", SERVER)
    port: int = option(8000, count(0, 65535), "port; 0: any free one", SERVER, aliases=("-p",))
    uds: str | None = option(None, text("PATH", auto=True), "unix socket instead of an address", SERVER, rare=True)
    also_listen: tuple[str, ...] = option((), texts("HOST:PORT"), "further addresses, or paths that end in .sock: "
                                          "127.0.0.1:11434 is Ollama's", SERVER)
    served_model_name: tuple[str, ...] = option((), texts("NAME"), "names that requests use; the first is echoed",
                                                SERVER, aliases=("--alias", "-a"))
    any_model_name: bool = option(False, switch(), "answer to every model name", SERVER, rare=True)
    api_key: tuple[str, ...] = option(
        (), texts("KEY", secret=True), "key that clients must send", SERVER, env=("OCTAVO_API_KEY",)
    )
    api_key_file: str | None = option(
        None, text("FILE", auto=True), "keys, one a line (`octavo key` makes one); read again on SIGHUP", SERVER,
        aliases=("--api-keys-file",),
    )
    admin_api_key: tuple[str, ...] = option(
        (), texts("KEY", secret=True), "key that alone may call administrative routes", SERVER,
        env=("OCTAVO_ADMIN_API_KEY",), rare=True,
    )
    share_prefix_cache: bool = option(
        False, switch(), "keys find each other's cached prefixes (and can tell by time what others asked)", SERVER,
        rare=True,
    )
    allowed_origins: tuple[str, ...] = option(
        LOCALHOST, texts("ORIGIN"), "CORS origins (:* any port, * any origin)", SERVER,
        aliases=("--cors-origins",), rare=True,
    )
    public_metrics: bool = option(False, switch(), "/metrics without a key", SERVER, rare=True)
    sse_ping_interval: float = option(
        15.0, seconds(), "silence after which a stream gets a comment; 0: never", SERVER,
        aliases=("--sse-keep-alive-interval",), rare=True,
    )
    stream_grace: float = option(
        30.0, seconds(), "time for which a stream whose client is gone can be taken up again (/v1/stream); 0: never",
        SERVER, rare=True,
    )
    shutdown_timeout: float = option(30.0, seconds(), "time to finish requests after SIGTERM", SERVER, rare=True)
    disable_log_stats: bool = option(False, switch(), "no line of statistics every 10 s", LOGS, rare=True)
    enable_log_requests: bool = option(False, switch(), "a line for each request, without its text", LOGS, rare=True)
    otlp_traces_endpoint: str | None = option(
        None, text("URL", auto=True), "OpenTelemetry collector that gets a span for each request: http://HOST:4318 "
        "(needs the extra otel)", LOGS, rare=True,
    )
    disable_access_log: bool = option(
        False, switch(), "no line for each HTTP call", LOGS, aliases=("--disable-uvicorn-access-log",), rare=True
    )
    config: str | None = option(None, text("FILE", auto=True), "YAML file of these options", SERVER)

    def __post_init__(self) -> None:
        check(self)


# fmt: on
NOUNS: tuple[type, ...] = (EngineConfig, TextConfig, ServerConfig, LogConfig)


def all_options() -> tuple[Option, ...]:
    """Every option, in the order of help."""
    return tuple(each for noun in NOUNS for each in options_of(noun))
