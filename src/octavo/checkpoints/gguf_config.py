"""GGUF metadata -> the configuration names of Hugging Face, and a GGUF file as a Checkpoint.

A literal table says which architectures are known. It knows how a file spells things, not how a model computes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from octavo.checkpoints.checkpoint import Checkpoint, read_exactly
from octavo.checkpoints.gguf import ArrayRef, GGUFFile, read_arrays, scalars
from octavo.checkpoints.gguf_shards import PART, read_model
from octavo.checkpoints.kinds import refuse_gguf
from octavo.errors import CheckpointError, UnsupportedModel

# general.architecture -> (architectures, model_type). 'llama' stands for Llama, Mistral and SmolLM2 in GGUF.
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
}

# general.file_type -> what people call the mixture (llama.h, llama_ftype)
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 14: "Q4_K_S", 15: "Q4_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip
QUANTIZATION_SUFFIX = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16|MXFP4)$", re.IGNORECASE)

# limits far above any model, far below what would overflow a product
LARGEST = 1 << 24

# Llama 3's rope scaling: the file holds only the resulting factors, and all published models share these three
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path) -> Checkpoint:
    """A .gguf file, and the others it is one of, as a Checkpoint. Raises CheckpointError, UnsupportedModel."""
    file, files = read_model(path)
    refuse_gguf(file)
    config = gguf_config(file)
    kind = file.metadata.get("general.file_type")
    formats: Counter[str] = Counter()
    for tensor in file.tensors.values():
        formats[tensor.format] += tensor.nbytes
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(
        path=file.path,
        kind="gguf",
        display_name=display_name(path),
        weight_format=(isinstance(kind, int) and FILE_TYPES.get(kind)) or _most(formats),
        config=config,
        tensors=file.tensors,
        files=files,
        generation_config=_generation_config(file),
        chat_template=template if isinstance(template, str) else None,
        metadata_reader=lambda arrays: read_arrays(file, "tokenizer.") if arrays else scalars(file, "tokenizer."),
    )


def display_name(path: Path) -> str:
    """The file's name without quantization and part."""
    found = PART.match(path.name)
    return QUANTIZATION_SUFFIX.sub("", found["stem"] if found else path.stem)


def _most(formats: Counter[str]) -> str:
    return formats.most_common(1)[0][0].upper() if formats else "none"


class _Keys:
    """Reads an architecture's keys with their types and ranges; every complaint names file and key."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def fail(self, key: str, why: str) -> NoReturn:
        offset = self.file.key_offsets.get(key)
        where = "" if offset is None else f" (offset {offset:#x})"
        raise CheckpointError(
            f"broken GGUF {self.file.path}: key '{key}' {why}{where}", path=str(self.file.path), key=key
        )

    def get(self, name: str) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{name}")

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer from `least` to LARGEST; a list of equal ones (per layer) counts as one."""
        key, value = f"{self.architecture}.{name}", self.get(name)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if isinstance(value, list) and value:
            if len(set(value)) > 1:
                raise UnsupportedModel(f"{self.file.path}: key '{key}' differs from layer to layer, which is not built")
            value = value[0]
        if type(value) is not int or not least <= value <= LARGEST:
            self.fail(key, f"is {str(value)[:40]}, not an integer from {least} to {LARGEST:,}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A positive finite number, as the shortest decimal that rounds to the float32 of the file."""
        key, value = f"{self.architecture}.{name}", self.get(name)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            self.fail(key, f"is {str(value)[:40]}, not a positive number")
        return float(str(np.float32(value)))


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The configuration of Hugging Face from a file's metadata. Raises CheckpointError for missing or absurd keys,
    UnsupportedModel for an architecture or rope scaling that is not built."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        key = "general.architecture"
        raise CheckpointError(f"broken GGUF {file.path}: key '{key}' is missing", path=str(file.path), key=key)
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"architecture '{architecture[:60]}' is not supported ({file.path}, key general.architecture); "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    keys = _Keys(file, architecture)
    if keys.count("expert_count", 0, least=0):
        raise UnsupportedModel(f"{file.path}: mixtures of experts are not built yet (key {architecture}.expert_count)")
    name, model_type = ARCHITECTURES[architecture]
    heads, hidden = keys.count("attention.head_count"), keys.count("embedding_length")
    head_dim = keys.count("attention.key_length", hidden // heads if hidden % heads == 0 else None)
    theta = keys.real("rope.freq_base", 10000.0)
    config = {
        "architectures": [name],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": keys.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "max_position_embeddings": keys.count("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": _vocabulary(keys),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "sliding_window": keys.count("attention.sliding_window", 0, least=0) or None,
    }
    rotary = keys.count("rope.dimension_count", head_dim)
    if rotary != head_dim:
        config["partial_rotary_factor"] = rotary / head_dim
    config["rope_scaling"] = _rope_scaling(keys, rotary, theta)
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        config[f"{ours}_token_id"] = _token(file, theirs)
    return config


def _vocabulary(keys: _Keys) -> int:
    embedding = keys.file.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        return embedding.shape[0]
    tokens = keys.file.metadata.get("tokenizer.ggml.tokens")
    return keys.count("vocab_size", tokens.count if isinstance(tokens, ArrayRef) else None)


def _token(file: GGUFFile, name: str) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    return value if type(value) is int and 0 <= value <= LARGEST else None


def _generation_config(file: GGUFFile) -> dict[str, Any]:
    """The ids that end an answer: end of text, of turn, of message."""
    found = [_token(file, name) for name in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(token for token in found if token is not None))
    return {"eos_token_id": ids} if ids else {}


def _rope_scaling(keys: _Keys, rotary: int, theta: float) -> dict[str, Any] | None:
    """The rope_scaling dictionary of Hugging Face: linear from keys, llama3 from the tensor of factors."""
    path = keys.file.path
    kind = keys.get("rope.scaling.type")
    if ROPE_FACTORS in keys.file.tensors:
        return _llama3(keys.file, rotary, theta)
    if kind is None and keys.get("rope.scale_linear") is not None:  # the key of files from 2023
        kind, factor = "linear", keys.real("rope.scale_linear")
    elif kind in (None, "none"):
        return None
    elif kind == "linear":
        factor = keys.real("rope.scaling.factor")
    else:
        raise UnsupportedModel(
            f"{path}: rope scaling '{str(kind)[:40]}' is not supported yet "
            f"(key {keys.architecture}.rope.scaling.type); supported: none, linear, llama3"
        )
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _llama3(file: GGUFFile, rotary: int, theta: float) -> dict[str, Any]:
    """The parameters behind a tensor of rope factors: the largest is the factor; checked against Llama 3's rule."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.format != "f32" or tensor.shape != (rotary // 2,):
        raise CheckpointError(
            f"broken GGUF {file.path}: tensor '{ROPE_FACTORS}' is {tensor.format} {list(tensor.shape)}, "
            f"not f32 [{rotary // 2}] (offset {tensor.offset:#x})",
            path=str(file.path),
            key=ROPE_FACTORS,
        )
    raw = np.empty(tensor.nbytes, np.uint8)
    read_exactly(tensor.file, tensor.offset, raw, ROPE_FACTORS)
    found = raw.view("<f4").astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(found.max()), **LLAMA3}
    if not np.allclose(found, llama3_factors(rotary, theta, scaling), rtol=1e-4, atol=0):
        raise UnsupportedModel(f"{file.path}: tensor '{ROPE_FACTORS}' does not follow Llama 3's rule")
    return scaling


def llama3_factors(rotary: int, theta: float, scaling: dict[str, Any]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What each of the rotary / 2 frequencies is divided by (Llama 3.1's rule): 1 for short waves, `factor` for long
    ones, a blend in the inverse between."""
    waves = 2 * math.pi * theta ** (np.arange(0, rotary, 2) / rotary)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / scaling["factor"] + smooth))
