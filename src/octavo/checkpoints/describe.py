"""What a model is, by its headers alone: for people, and for programs that ask (`octavo show`).

It describes any GGUF file and any folder with safetensors, also of architectures that are not built: nothing here asks
whether octavo could serve it, and no tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import TensorInfo
from octavo.checkpoints.folder import MAX_JSON, chat_template
from octavo.checkpoints.gguf import GGUFFile, read_arrays, scalars
from octavo.checkpoints.gguf_config import display_name
from octavo.checkpoints.gguf_shards import read_model
from octavo.checkpoints.hub_names import stem
from octavo.checkpoints.inventory import QUANTIZATION
from octavo.checkpoints.kinds import only_gguf
from octavo.checkpoints.safetensors import read_json, read_small, read_tensors, weight_files
from octavo.errors import ModelNotFound

MAX_README = 4 << 20
SHAPE = {  # what is told -> key of config.json, key of the GGUF architecture
    "context length": ("max_position_embeddings", "context_length"),
    "embedding length": ("hidden_size", "embedding_length"),
    "layers": ("num_hidden_layers", "block_count"),
    "heads": ("num_attention_heads", "attention.head_count"),
    "KV heads": ("num_key_value_heads", "attention.head_count_kv"),
    "experts": ("num_experts", "expert_count"),
    "experts used": ("num_experts_per_tok", "expert_used_count"),
    "sliding window": ("sliding_window", "attention.sliding_window"),
}
OTHER_NAMES = {"num_experts": "num_local_experts"}  # Mixtral and gpt-oss
# general.sampling.* of GGUF (llama.cpp) -> names of generation_config.json
SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
STATED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
EMBEDDING = re.compile(r"^(bert|nomic-bert|xlm-roberta|roberta|modernbert|jina-bert)", re.IGNORECASE)
FIM = frozenset(("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<|fim▁begin|>", "<PRE>", "▁<PRE>", "[PREFIX]"))
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LICENSE = re.compile(r"^license(?:_name)?:\s*['\"]?([^'\"\n]+)", re.MULTILINE)


@dataclass(frozen=True)
class FormatShare:
    """The tensors of one format: how many, their elements and bytes."""

    format: str
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True)
class Description:
    """A model on disk. `shape`: the words of SHAPE -> numbers, those that the file states."""

    name: str
    kind: str  # gguf, safetensors
    files: tuple[Path, ...]
    architecture: str
    parameters: int
    quantization: str  # of the file's name, else the format with most bytes
    formats: tuple[FormatShare, ...]  # most bytes first
    shape: Mapping[str, int]
    capabilities: tuple[str, ...]  # as Ollama words them: completion, tools, thinking, insert, embedding
    template: str | None
    license: str | None
    sampling: Mapping[str, float]
    stop: tuple[str, ...]  # the tokens that end an answer
    metadata: Mapping[str, Any]  # scalar keys of the GGUF header, or config.json
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(share.nbytes for share in self.formats)


def describe(path: Path) -> Description:
    """Raises ModelNotFound, CheckpointError, and UnsupportedModel for tensor formats of unknown size."""
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist", param="model")
    if path.is_dir() and (path / "config.json").exists():
        return _of_folder(path)
    return _of_gguf(only_gguf(path) if path.is_dir() else path)


def _of_gguf(path: Path) -> Description:
    file, files = read_model(path)
    stated = scalars(file, "")
    architecture = str(stated.get("general.architecture", "unknown"))
    shape = {word: _number(file.metadata.get(f"{architecture}.{key}")) for word, (_, key) in SHAPE.items()}
    template = stated.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    named = QUANTIZATION.search(stem(path.name))
    formats = shares(file.tensors.values())
    tokens = _tokens(file)
    pooled = _number(stated.get(f"{architecture}.pooling_type")) is not None
    return Description(
        name=str(stated.get("general.name") or display_name(path)),
        kind="gguf",
        files=files,
        architecture=architecture,
        parameters=sum(share.elements for share in formats),
        quantization=named[1].upper() if named else _most(formats),
        formats=formats,
        shape={word: number for word, number in shape.items() if number},
        capabilities=capabilities(architecture, template, fim=not FIM.isdisjoint(tokens), pooled=pooled),
        template=template,
        license=_text(stated.get("general.license.name")) or _text(stated.get("general.license")),
        sampling={
            ours: float(stated[key])
            for theirs, ours in SAMPLING.items()
            if isinstance(stated.get(key := f"general.sampling.{theirs}"), int | float)
        },
        stop=_gguf_stop(file, tokens),
        metadata={key: value for key, value in stated.items() if key != "tokenizer.chat_template"},
        tensors=file.tensors,
    )


def _tokens(file: GGUFFile) -> list[str]:
    """The vocabulary in the order of its ids; [] for a file without one."""
    key = "tokenizer.ggml.tokens"
    found = read_arrays(file, key).get(key)
    return [str(each) for each in found] if isinstance(found, list) else []


def _gguf_stop(file: GGUFFile, tokens: list[str]) -> tuple[str, ...]:
    """The texts of the ids that end a text, a turn and a message."""
    ids = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(tokens[each] for each in ids if type(each) is int and 0 <= each < len(tokens)))


def _of_folder(folder: Path) -> Description:
    config = read_json(folder / "config.json", MAX_JSON)
    inner = config.get("text_config")
    inner = {**config, **inner} if isinstance(inner, dict) else config  # models of several media
    files, weight_map = weight_files(folder)
    tensors = read_tensors(files, weight_map)
    formats = shares(tensors.values())
    names = config.get("architectures")
    architecture = str(config.get("model_type") or (names[0] if isinstance(names, list) and names else "unknown"))
    template = chat_template(folder)
    generation = _optional(folder / "generation_config.json")
    shape = {word: _number(inner.get(key, inner.get(OTHER_NAMES.get(key, "")))) for word, (key, _) in SHAPE.items()}
    quantized = config.get("quantization_config")
    method = _text(quantized.get("quant_method")) if isinstance(quantized, dict) else None
    special = _special_tokens(folder)
    return Description(
        name=folder.absolute().name,
        kind="safetensors",
        files=files,
        architecture=architecture,
        parameters=sum(share.elements for share in formats),
        quantization=method or _most(formats),
        formats=formats,
        shape={word: number for word, number in shape.items() if number},
        capabilities=capabilities(
            architecture,
            template,
            fim=not FIM.isdisjoint(special.values()),
            pooled=(folder / "modules.json").exists(),
        ),
        template=template,
        license=_folder_license(folder),
        sampling={key: float(generation[key]) for key in STATED if isinstance(generation.get(key), int | float)},
        stop=_folder_stop(generation.get("eos_token_id", config.get("eos_token_id")), special),
        metadata=config,
        tensors=tensors,
    )


def _folder_stop(ids: object, special: Mapping[int, str]) -> tuple[str, ...]:
    listed = ids if isinstance(ids, list) else [ids]
    return tuple(special[each] for each in listed if type(each) is int and each in special)


def _special_tokens(folder: Path) -> dict[int, str]:
    """id -> text of the added tokens that tokenizer_config.json or tokenizer.json lists."""
    listed = _optional(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(listed, dict) and listed:
        pairs = [(number, each.get("content")) for number, each in listed.items() if isinstance(each, dict)]
    else:
        added = _optional(folder / "tokenizer.json").get("added_tokens")
        entries = added if isinstance(added, list) else []
        pairs = [(each.get("id"), each.get("content")) for each in entries if isinstance(each, dict)]
    return {int(number): text for number, text in pairs if str(number).isdecimal() and isinstance(text, str)}


def _folder_license(folder: Path) -> str | None:
    """Of the model card's front matter."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    front = FRONT_MATTER.match(read_small(readme, MAX_README).decode("utf-8", "replace"))
    found = LICENSE.findall(front[1]) if front else []
    return str(found[-1]).strip() if found else None


def shares(tensors: Iterable[TensorInfo]) -> tuple[FormatShare, ...]:
    """Tensors by format, most bytes first."""
    found: dict[str, list[int]] = {}
    for tensor in tensors:
        count = found.setdefault(tensor.format, [0, 0, 0])
        for i, more in enumerate((1, prod(tensor.shape), tensor.nbytes)):
            count[i] += more
    return tuple(sorted((FormatShare(name, *count) for name, count in found.items()), key=lambda each: -each.nbytes))


def capabilities(architecture: str, template: str | None, *, fim: bool, pooled: bool) -> tuple[str, ...]:
    """Read off the chat template, the special tokens and the pooling."""
    if pooled or EMBEDDING.match(architecture):
        return ("embedding",)
    text = template or ""
    found = {"tools": "tools" in text, "thinking": "enable_thinking" in text or "<think>" in text, "insert": fim}
    return ("completion", *(name for name, has in found.items() if has))


def _most(formats: tuple[FormatShare, ...]) -> str:
    return formats[0].format.upper() if formats else "none"


def _number(value: object) -> int | None:
    """A number, or the largest of a list for each layer."""
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        value = max(value)
    return value if type(value) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, MAX_JSON) if path.is_file() else {}
