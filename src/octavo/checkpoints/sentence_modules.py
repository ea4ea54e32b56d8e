"""The files of sentence-transformers beside a model: modules.json, how rows become one vector, and layers behind that.

Transformer, Pooling, any number of Dense, Normalize: in this order, which is that of every published model. It knows
files and names; it runs no code of theirs, and computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import TensorInfo, read_exactly
from octavo.checkpoints.safetensors import parse_json, read_json, read_safetensors, read_small
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.quantization.format import format_named

MAX_JSON = 4 << 20
ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
KINDS = ("mean", "cls", "last")
# keys of 1_Pooling/config.json -> our kind; others are not built
MODES = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last",
}  # fmt: skip
ACTIVATIONS = ("Identity", "Tanh", "ReLU")  # of a Dense, by the last part of torch's name
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Modules:
    """kind: '' where it is left open. dense: folders of the layers behind the pooling, in order."""

    kind: str
    normalize: bool
    dense: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dense:
    """weight [out, in] float32, bias [out] or None, and one of ACTIVATIONS."""

    weight: Floats
    bias: Floats | None
    activation: str


def read_modules(folder: Path) -> Modules | None:
    """What modules.json says; None where there is none. Raises UnsupportedModel for a module that is not built."""
    file = folder / "modules.json"
    if not file.is_file():
        return None
    listed = parse_json(b'{"modules":' + read_small(file, MAX_JSON) + b"}", file)["modules"]  # a list by itself
    parts = [
        (str(each.get("type", "")).rpartition(".")[2], _inside(folder, str(each.get("path", ""))))
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
    ]
    for name, _ in parts:
        if name not in ORDER:
            raise UnsupportedModel(f"{file}: the module {name[:60]!r} is not built", param="modules.json")
    places = [ORDER.index(name) for name, _ in parts]
    if places != sorted(places):
        names = ", ".join(name for name, _ in parts)[:200]
        raise UnsupportedModel(f"{file}: modules in the order {names} are not built", param="modules.json")
    pooling = next((path for name, path in parts if name == "Pooling"), None)
    return Modules(
        "" if pooling is None else _mode(pooling / "config.json"),
        any(name == "Normalize" for name, _ in parts),
        tuple(path for name, path in parts if name == "Dense"),
    )


def read_dense(folder: Path, width: int) -> Dense:
    """The layer in a module's folder, for vectors of `width`. Raises CheckpointError, UnsupportedModel."""
    config = read_json(folder / "config.json", MAX_JSON)
    activation = str(config.get("activation_function") or "Identity").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise UnsupportedModel(
            f"{folder / 'config.json'}: activation_function {activation[:60]!r} is not built: {', '.join(ACTIVATIONS)}",
            param="activation_function",
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: only weights in safetensors are read", path=str(file))
    tensors = read_safetensors(file)
    weight = _floats(file, tensors, "linear.weight")
    bias = _floats(file, tensors, "linear.bias") if config.get("bias", True) else None
    out = weight.shape[0] if weight.ndim == 2 else 0
    if weight.shape != (out, width) or out < 1 or (bias is not None and bias.shape != (out,)):
        shapes = f"{weight.shape}" + ("" if bias is None else f" and {bias.shape}")
        raise CheckpointError(
            f"{file}: linear has the shapes {shapes}, which take no vectors of {width} numbers",
            path=str(file), key="linear.weight",
        )  # fmt: skip
    return Dense(weight, bias, activation)


def _inside(folder: Path, name: str) -> Path:
    """A module's folder, which must not lie elsewhere."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"{folder / 'modules.json'}: the path {name[:60]!r} leaves the folder", key="path")
    return folder / path


def _floats(file: Path, tensors: dict[str, TensorInfo], name: str) -> Floats:
    info = tensors.get(name)
    if info is None:
        raise CheckpointError(f"{file}: the tensor {name} is missing", path=str(file), key=name)
    raw = np.empty(info.nbytes, np.uint8)
    read_exactly(info.file, info.offset, raw, name)
    values: Floats = format_named(info.format).dequantize(raw, info.shape)
    return values


def _mode(file: Path) -> str:
    config = read_json(file, MAX_JSON)
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        chosen = [stated.removesuffix("token").removesuffix("_tokens")]
    else:
        chosen = [MODES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in KINDS:
        raise UnsupportedModel(f"{file}: pooling {', '.join(chosen)[:100]!r} is not built: {', '.join(KINDS)}",
                               param="pooling_mode")  # fmt: skip
    return chosen[0]
