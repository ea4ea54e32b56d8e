"""A Hugging Face folder as a Checkpoint: config.json, safetensors, tokenizer files, chat template, generation defaults.

Only JSON, templates and safetensors are read; no code of the folder is ever imported. It fills in what older and newer
configuration files leave out or spell differently; it judges no architecture.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.kinds import refuse_folder
from octavo.checkpoints.safetensors import read_json, read_small, read_tensors, weight_files
from octavo.errors import CheckpointError

MAX_JSON = 64 << 20  # tokenizer_config.json of large vocabularies takes a few MiB
MAX_TEMPLATE = 4 << 20
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


def open_folder(folder: Path) -> Checkpoint:
    """The folder as a Checkpoint. Raises CheckpointError naming the file."""
    config_file = folder / "config.json"
    stated = read_json(config_file, MAX_JSON)
    refuse_folder(folder, stated)
    config = normalized(stated, config_file)
    files, weight_map = weight_files(folder)
    tensors = read_tensors(files, weight_map)
    formats: Counter[str] = Counter()
    for tensor in tensors.values():
        formats[tensor.format] += tensor.nbytes
    generation_file = folder / "generation_config.json"
    return Checkpoint(
        path=folder,
        kind="safetensors",
        display_name=_display_name(folder),
        weight_format=formats.most_common(1)[0][0].upper() if formats else "none",
        config=config,
        tensors=tensors,
        files=(config_file, *files),
        generation_config=read_json(generation_file, MAX_JSON) if generation_file.exists() else {},
        chat_template=chat_template(folder),
        tokenizer_files={name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()},
    )


def normalized(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration with the names that models read; what holds for one family alone is left to it.

    transformers 5 writes `rope_parameters` where 4 wrote `rope_theta` and `rope_scaling`; `type` is the old name of
    `rope_type`; absent keys take the defaults of Hugging Face's own classes. Raises CheckpointError naming the key.
    """
    found = dict(config)
    rope = found.get("rope_parameters")
    if isinstance(rope, dict):
        if rope.get("rope_theta") is not None:
            found.setdefault("rope_theta", rope["rope_theta"])
        rest = {key: value for key, value in rope.items() if key != "rope_theta"}
        if found.get("rope_scaling") is None:
            found["rope_scaling"] = rest
    found["rope_scaling"] = _rope_scaling(found.get("rope_scaling"), path)
    found.setdefault("rope_theta", 10000.0)
    if found.get("num_key_value_heads") is None:
        found["num_key_value_heads"] = found.get("num_attention_heads")
    hidden, heads = found.get("hidden_size"), found.get("num_attention_heads")
    if found.get("head_dim") is None and type(hidden) is int and type(heads) is int and heads > 0:
        found["head_dim"] = hidden // heads
    found.setdefault("sliding_window", None)
    return found


def _rope_scaling(scaling: object, path: Path) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if not isinstance(scaling, dict):
        raise CheckpointError(f"{path}: key rope_scaling is not an object", path=str(path), key="rope_scaling")
    found = dict(scaling)
    found.setdefault("rope_type", found.pop("type", "default"))
    return None if found["rope_type"] == "default" else found


def _display_name(folder: Path) -> str:
    """The folder's name; in the hub's cache (models--org--name/snapshots/revision) the repository's."""
    resolved = folder.absolute()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.split("--")[-1]
    return resolved.name


def chat_template(folder: Path) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's: a string, or the one named default of a list."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_small(file, MAX_TEMPLATE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file} is not UTF-8: {error}", path=str(file)) from error
    config_file = folder / "tokenizer_config.json"
    if not config_file.is_file():
        return None
    template = read_json(config_file, MAX_JSON).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None
