"""What people give for a model though it is none: one clear error each, with what to give instead."""

import json
from pathlib import Path

import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.errors import CheckpointError, UnsupportedModel
from tests.checkpoints.test_gguf import write
from tests.checkpoints.test_safetensors import CONFIG
from tests.checkpoints.test_shards import write as write_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98362432\n"


@pytest.mark.parametrize(
    "arch, extra, told",
    [
        ("clip", {}, "vision or audio part of a model .mmproj. .key general.architecture.: give the language model's"),
        ("llama", {"general.type": "mmproj"}, "mmproj. .key general.type"),
        ("llama", {"general.type": "adapter"}, "LoRA adapter .*llama-export-lora"),
        ("llama", {"general.type": "imatrix"}, "importance matrix"),
        ("llama", {"general.type": "vocab"}, "vocabulary without weights"),
        ("controlvector", {}, "control vector"),
        ("flux", {}, "image or video model, 'flux'"),
    ],
)
def test_gguf_files_that_are_no_language_model(tmp_path: Path, arch: str, extra: dict[str, str], told: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"m.gguf is .*{told}"):
        open_checkpoint(write(tmp_path / "m.gguf", arch=arch, extra=extra))


@pytest.mark.parametrize(
    "content, told",
    [
        (POINTER, "git-lfs pointer, not the file itself: run `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page"),
        (b"<html>", "incomplete"),
        (b"", "incomplete"),
    ],
)
def test_files_that_are_not_what_was_downloaded(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"m.gguf.*{told}"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_pointer_in_the_place_of_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="model.safetensors: it is a git-lfs pointer"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "files, error, told",
    [
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": ""},
            UnsupportedModel, "is a LoRA adapter of org/base .adapter_config.json., not a model: merge it",
        ),
        ({"model_index.json": "{}"}, UnsupportedModel, "image or video model for diffusers"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, UnsupportedModel, "layout of the model's authors"),
        ({"pytorch_model.bin": ""}, CheckpointError, "pytorch_model.bin is a pickle.*safetensors and GGUF"),
        ({"mmproj-model-f16.gguf": ""}, CheckpointError, "has only mmproj-model-f16.gguf"),
        ({"a.gguf.part": ""}, CheckpointError, "unfinished download .a.gguf.part."),
        ({"readme.txt": ""}, CheckpointError, "has neither config.json nor a .gguf file"),
    ],
)  # fmt: skip
def test_folders_without_a_model(tmp_path: Path, files: dict[str, str], error: type[Exception], told: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=told):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "more, files, told",
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            (),
            "quantized by gptq .key quantization_config",
        ),
        ({"quantization_config": {"quant_algo": "FP8"}}, (), "quantized by FP8"),
        ({"quantization_config": {}}, (), "by an unnamed method"),
        ({"quantization": {"bits": 4, "group_size": 64}}, (), "by MLX's .key quantization."),
        ({}, ("adapter_config.json",), "is a LoRA adapter .adapter_config.json."),
    ],
)
def test_folders_whose_weights_are_not_built(
    tmp_path: Path, more: dict[str, object], files: tuple[str, ...], told: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **more}))
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedModel, match=told):
        open_checkpoint(tmp_path)


def test_weights_for_other_programs_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(CheckpointError, match="has no weights: .*; it has files for ONNX, which octavo does not read"):
        open_checkpoint(tmp_path)


def test_a_vision_part_beside_its_model_is_passed_over(tmp_path: Path) -> None:
    (model,) = write_model(tmp_path / "m" / "model.gguf")
    (model.parent / "mmproj-model-f16.gguf").write_bytes(b"")
    (model.parent / "model.imatrix.gguf").write_bytes(b"")
    assert open_checkpoint(model.parent).path == model
