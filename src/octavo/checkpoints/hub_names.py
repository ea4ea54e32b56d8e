"""What people write for a model on the hub, and which of a repository's files they mean by it.

It knows names only: neither the network nor what lies in a cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from octavo.checkpoints.gguf_shards import PART, part_names

HOST = r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/"
REPO = r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
REVISION, TAG = r"@(?P<revision>[\w.-]+(?:/[\w.-]+)*)", r":(?P<tag>[\w.-]+(?:/[\w.-]+)*)"
FORMS = tuple(
    re.compile(form)
    for form in (
        rf"^(?:{HOST})?{REPO}(?:{REVISION})?(?:{TAG})?$",
        rf"^(?:{HOST})?{REPO}{TAG}{REVISION}$",
        # as the browser shows it
        rf"^{HOST}{REPO}/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?:/(?P<tag>[\w./-]+\.gguf))?/?(?:\?.*)?$",
    )
)
LATEST = "latest"  # Ollama's tag for a name without one
# When a name tells no quantization: llama.cpp's and Ollama's first choice, then what comes close to it in quality for
# its size, then what keeps more.
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0", "Q5_K_M", "Q4_K_S", "Q4_1", "Q6_K", "MXFP4", "BF16", "F16")
SMALL_FILES = frozenset((
    "config.json", "generation_config.json", "model.safetensors.index.json", "README.md", "modules.json",
    "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    *(f"{place}_Dense/{name}" for place in range(1, 5) for name in ("config.json", "model.safetensors")),
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
))  # fmt: skip
# any of which is a vocabulary (see tokenizer/folder_tokenizer.py)
VOCABULARIES = (
    "tokenizer.json", "tekken*.json", "*.tiktoken", "tiktoken.model", "*tokenizer*.model*", "vocab.json", "vocab.txt",
    "sentencepiece*.model", "spiece.model", "spm.model",
)  # fmt: skip
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
SHARD = re.compile(r"^model-\d{5}-of-\d{5}\.safetensors$")


@dataclass(frozen=True)
class HubName:
    """A repository, a quantization or file of it (None: the default), and a branch, tag or commit (None: main)."""

    repo: str
    tag: str | None = None
    revision: str | None = None


def parse(name: str) -> HubName | None:
    """`org/name`, `:Q4_K_M` or `:FILE.gguf` and `@revision` behind it in any order, `hf.co/` or a web address before
    it; None for anything else."""
    for form in () if ".." in name else FORMS:
        if found := form.match(name):
            given = found.groupdict()
            tag, revision = given.get("tag"), given.get("revision")
            return HubName(given["repo"], None if tag == LATEST else tag, revision)
    return None


def is_part_of_a_model(name: str) -> bool:
    """Whether a .gguf file is by its name no model but something that goes with one."""
    return "mmproj" in name.lower() or "imatrix" in name.lower()


def gguf_models(names: Iterable[str]) -> list[str]:
    """The GGUF models among files, sorted: whole files, and the first part of those that lie in several."""
    ggufs = [name for name in names if name.endswith(".gguf") and not is_part_of_a_model(name)]
    return sorted({part_names(name)[0] for name in ggufs})


def choose_gguf(names: Iterable[str], tag: str | None) -> str | None:
    """The model that a tag means: a file name, or the quantization at the end of one (`-Q4_K_M.gguf`,
    `.q4_k_m.gguf`); without a tag the first of PREFERRED, else the first of all. The first part where there are
    several; None where there is no such model."""
    models = gguf_models(names)
    if tag and tag.endswith(".gguf"):
        return next((name for name in models if part_names(tag)[0] in (name, name.rpartition("/")[2])), None)
    for wanted in (tag,) if tag else PREFERRED:
        for name in models:
            if re.search(rf"(^|[/._-]){re.escape(wanted)}$", stem(name), re.IGNORECASE):
                return name
    return models[0] if models and not tag else None


def stem(name: str) -> str:
    """A .gguf file's name without its ending and number of part."""
    found = PART.match(name)
    return found["stem"] if found else name.removesuffix(".gguf")


def is_folder_model(names: Iterable[str]) -> bool:
    """Whether files are a model for transformers with safetensors weights."""
    listed = set(names)
    return "config.json" in listed and bool(weight_names(listed))


def is_small(name: str) -> bool:
    """Whether a model for transformers may need a file of this name beside its weights."""
    return name in SMALL_FILES or fnmatchcase(name, NAMED_TEMPLATES) or is_vocabulary(name)


def is_vocabulary(name: str) -> bool:
    """Whether a tokenizer can be built from a file of this name."""
    return any(fnmatchcase(name, pattern) for pattern in VOCABULARIES) and "/" not in name


def weight_names(names: Iterable[str]) -> list[str]:
    """The safetensors files of a model: one, or the numbered ones, not its authors' second copy (consolidated*)."""
    top = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if "model.safetensors" in top:
        return ["model.safetensors"]
    numbered = [name for name in top if SHARD.match(name)]
    others = [name for name in top if not name.startswith(("adapter_", "consolidated"))]
    return numbered or (others if len(others) == 1 else [])
