"""What is no language model, though it lies where one is expected: each kind is told by what it is and what to give
instead.

It looks at names, at a folder's small JSON files and at the keys of a GGUF header, never at tensors. What is a language
model of a family that is not built is none of its business (see gguf_config.py and models/registry.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import PICKLED, refuse_pickle
from octavo.checkpoints.gguf import GGUFFile
from octavo.checkpoints.gguf_shards import part_names
from octavo.checkpoints.hub_names import gguf_models
from octavo.checkpoints.safetensors import INDEX, read_json
from octavo.errors import CheckpointError, ModelNotFound, OctavoError, UnsupportedModel

MAX_JSON = 4 << 20
# general.architecture of image and video models (city96/ComfyUI-GGUF, stable-diffusion.cpp)
DIFFUSION = frozenset((
    "aura", "chroma", "cosmos", "flux", "hidream", "hyvid", "lumina2", "ltxv", "pixart", "qwen_image", "sd1", "sd3",
    "sdxl", "wan", "z_image",
))  # fmt: skip
QUANTIZED = frozenset({("gpt_oss", "mxfp4")})  # (model_type, quant_method) of folders that are built
# general.type, or the architecture where the type is missing -> what it is, and what to give instead
GGUF_KINDS = {
    "adapter": ("a LoRA adapter", "merge it into its base with llama.cpp's llama-export-lora and give the result"),
    "mmproj": ("the vision or audio part of a model (mmproj)", "give the language model's own .gguf file"),
    "imatrix": ("an importance matrix, made to quantize a model", "give the model's own .gguf file"),
    "vocab": ("a vocabulary without weights", "give a file with weights"),
    "controlvector": ("a control vector", "give the model's own .gguf file"),
}


def refuse_gguf(file: GGUFFile) -> None:
    """Raises UnsupportedModel for a GGUF file that holds no language model, naming the key that says so."""
    architecture = file.metadata.get("general.architecture")
    for key, value in (("general.type", file.metadata.get("general.type")), ("general.architecture", architecture)):
        kind = "mmproj" if value == "clip" else value
        if isinstance(kind, str) and kind in GGUF_KINDS:
            what, instead = GGUF_KINDS[kind]
            raise UnsupportedModel(f"{file.path} is {what} (key {key}): {instead}")
    if architecture in DIFFUSION:
        raise UnsupportedModel(
            f"{file.path} is an image or video model, '{architecture}' (key general.architecture): octavo serves "
            "language models"
        )


def only_gguf(folder: Path) -> Path:
    """The one GGUF model of a folder without config.json. Raises ModelNotFound where there are several,
    CheckpointError and UnsupportedModel where there is none, saying what the folder has instead."""
    names = [path.name for path in folder.glob("*.gguf")]
    models = gguf_models(names)
    if len(models) == 1:
        return folder / next(name for name in part_names(models[0]) if name in names)
    if models:
        shown = ", ".join(models[:20])
        raise ModelNotFound(f"{folder} has several GGUF files; name one of them: {shown}", param="model")
    raise _instead(folder, names)


def _instead(folder: Path, ggufs: Iterable[str]) -> OctavoError:
    """The error about a folder without config.json and GGUF model."""
    names = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names:
        return UnsupportedModel(_adapter(folder))
    if "model_index.json" in names:
        return UnsupportedModel(
            f"{folder} is an image or video model for diffusers (model_index.json): octavo serves language models"
        )
    if "params.json" in names:
        return UnsupportedModel(
            f"{folder} has the layout of the model's authors (params.json) and no config.json: take the version for "
            "transformers, or a .gguf file"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLED:
            return CheckpointError(refuse_pickle(path), path=str(path))
    if parts := sorted(ggufs):
        return CheckpointError(f"{folder} has only {parts[0]}, which goes with a model but is none", path=str(folder))
    if partial := [name for name in sorted(names) if name.endswith((".incomplete", ".part", ".crdownload"))]:
        why = f"{folder} holds an unfinished download ({partial[0]}): fetch it again"
        return CheckpointError(why, path=str(folder))
    return CheckpointError(f"{folder} has neither config.json nor a .gguf file", path=str(folder))


def refuse_folder(folder: Path, config: dict[str, Any]) -> None:
    """Raises UnsupportedModel for a folder with config.json that holds an adapter, or weights quantized in a way that
    is not built; names the key."""
    adapter = (folder / "adapter_config.json").exists()
    if adapter and not (folder / INDEX).exists() and not (folder / "model.safetensors").exists():
        raise UnsupportedModel(_adapter(folder))
    for key, methods in (("quantization_config", ("quant_method", "quant_algo")), ("quantization", ("mode",))):
        found = config.get(key)
        if isinstance(found, dict):
            named = next((str(found[name])[:60] for name in methods if found.get(name)), "")
            method = named or ("MLX's" if key == "quantization" else "an unnamed method")
            if (config.get("model_type"), method) in QUANTIZED:
                continue
            raise UnsupportedModel(
                f"{folder / 'config.json'}: weights quantized by {method} (key {key}) are not supported; give the "
                "unquantized model, or a .gguf file of it"
            )


def _adapter(folder: Path) -> str:
    base = read_json(folder / "adapter_config.json", MAX_JSON).get("base_model_name_or_path")
    to = f" of {str(base)[:100]}" if base else ""
    return (
        f"{folder} is a LoRA adapter{to} (adapter_config.json), not a model: merge it with peft's merge_and_unload(), "
        "save_pretrained() the result, and give that folder"
    )
