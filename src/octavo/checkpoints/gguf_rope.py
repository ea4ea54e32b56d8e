"""The rope_scaling dictionary of Hugging Face from a GGUF file: keys, and tensors of factors for Llama 3 and LongRoPE.

Sources: llama.cpp's convert_hf_to_gguf.py (what is written) and llama_rope_yarn (what YaRN's magnitude is there).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import read_exactly
from octavo.checkpoints.gguf import GGUFFile
from octavo.checkpoints.gguf_keys import Keys
from octavo.errors import CheckpointError, UnsupportedModel

# Llama 3's rope scaling: the file holds only the resulting factors, and all published models share these three
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FACTORS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
KINDS = ("none", "linear", "yarn", "longrope", "llama3")


def rope_scaling(keys: Keys, rotary: int, theta: float) -> dict[str, Any] | None:
    """None where positions are not scaled. rotary: elements of a head that turn; theta: the base."""
    kind = keys.get("rope.scaling.type")
    if FACTORS in keys.file.tensors:
        return _llama3(keys.file, rotary, theta)
    if LONG in keys.file.tensors or kind == "longrope":
        return _longrope(keys, rotary)
    if kind is None and keys.get("rope.scale_linear") is not None:  # the key of files from 2023
        return _linear(keys.real("rope.scale_linear"))
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return _linear(keys.real("rope.scaling.factor"))
    if kind == "yarn":
        return _yarn(keys)
    raise UnsupportedModel(
        f"{keys.file.path}: rope scaling '{str(kind)[:40]}' is not supported yet "
        f"(key {keys.architecture}.rope.scaling.type); supported: {', '.join(KINDS)}"
    )


def _linear(factor: float) -> dict[str, Any] | None:
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn(keys: Keys) -> dict[str, Any]:
    """llama.cpp multiplies its attn_factor by 0.1 ln(factor) + 1; Hugging Face's attention_factor is the product."""
    factor = keys.real("rope.scaling.factor")
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.count("rope.scaling.original_context_length"),
        "beta_fast": keys.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.real("rope.scaling.yarn_beta_slow", 1.0),
    }
    if keys.get("rope.scaling.attn_factor") is not None:
        found["attention_factor"] = keys.real("rope.scaling.attn_factor") * (0.1 * math.log(factor) + 1.0)
    return found


def _longrope(keys: Keys, rotary: int) -> dict[str, Any]:
    original = keys.count("rope.scaling.original_context_length")
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": _factors(keys.file, LONG, rotary).tolist(),
        "short_factor": _factors(keys.file, SHORT, rotary).tolist(),
        "original_max_position_embeddings": original,
        "factor": max(1.0, keys.count("context_length") / original),
    }
    if keys.get("rope.scaling.attn_factor") is not None:
        found["attention_factor"] = keys.real("rope.scaling.attn_factor")
    return found


def _factors(file: GGUFFile, name: str, rotary: int) -> NDArray[np.float64]:
    """What each frequency is divided by: a float32 tensor [rotary / 2]."""
    if name not in file.tensors:
        raise CheckpointError(f"broken GGUF {file.path}: tensor '{name}' is missing", path=str(file.path), key=name)
    tensor = file.tensors[name]
    if tensor.format != "f32" or tensor.shape != (rotary // 2,):
        raise CheckpointError(
            f"broken GGUF {file.path}: tensor '{name}' is {tensor.format} {list(tensor.shape)}, "
            f"not f32 [{rotary // 2}] (offset {tensor.offset:#x})",
            path=str(file.path),
            key=name,
        )
    raw = np.empty(tensor.nbytes, np.uint8)
    read_exactly(tensor.file, tensor.offset, raw, name)
    return raw.view("<f4").astype(np.float64)


def _llama3(file: GGUFFile, rotary: int, theta: float) -> dict[str, Any]:
    """The parameters behind a tensor of rope factors: the largest is the factor; checked against Llama 3's rule."""
    found = _factors(file, FACTORS, rotary)
    scaling = {"rope_type": "llama3", "factor": float(found.max()), **LLAMA3}
    if not np.allclose(found, llama3_factors(rotary, theta, scaling), rtol=1e-4, atol=0):
        raise UnsupportedModel(f"{file.path}: tensor '{FACTORS}' does not follow Llama 3's rule")
    return scaling


def llama3_factors(rotary: int, theta: float, scaling: dict[str, Any]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What each of the rotary / 2 frequencies is divided by (Llama 3.1's rule): 1 for short waves, `factor` for long
    ones, a blend in the inverse between."""
    waves = 2 * math.pi * theta ** (np.arange(0, rotary, 2) / rotary)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / scaling["factor"] + smooth))
