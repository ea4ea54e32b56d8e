"""Descriptions by headers alone, of real files and of those that are not built."""

import json
from pathlib import Path

import pytest

from octavo.checkpoints.describe import FIM, describe
from octavo.errors import CheckpointError, ModelNotFound
from tests import real
from tests.checkpoints.test_gguf import write
from tests.checkpoints.test_safetensors import CONFIG
from tests.checkpoints.test_shards import write as write_parts


@pytest.mark.parametrize(
    "name, expected, formats, capabilities, stop, license",
    [
        (
            "smollm2-135m-instruct",
            ("llama", 134_515_008, "Q4_1", {"context length": 8192, "embedding length": 576, "layers": 30, "heads": 9}),
            {"q4_1", "q8_0", "f32"}, ("completion",), ("<|im_end|>",), "apache-2.0",
        ),
        (
            "gemma-3-270m",  # whatever octavo can serve
            ("gemma3", 268_098_176, "Q4_K_M", {"context length": 32768, "sliding window": 512, "KV heads": 1}),
            {"q8_0", "q5_0", "q4_k", "q6_k", "f32"}, ("completion",), ("<eos>",), "gemma",
        ),
        (
            "qwen2.5-coder-0.5b-instruct",
            ("qwen2", 630_167_424, "Q4_K_M", {"context length": 32768, "layers": 24}),
            {"q8_0", "q5_0", "q4_k", "q6_k", "f32"}, ("completion", "tools", "insert"), ("<|im_end|>",), None,
        ),
    ],
)  # fmt: skip
def test_real_files(
    name: str, expected: tuple[object, ...], formats: set[str], capabilities: tuple[str, ...], stop: tuple[str, ...],
    license: str | None,
) -> None:  # fmt: skip
    found = describe(real.model(name))
    *words, shape = expected
    assert [found.architecture, found.parameters, found.quantization] == words
    assert isinstance(shape, dict) and shape.items() <= found.shape.items()
    assert {each.format for each in found.formats} == formats and found.nbytes < real.model(name).stat().st_size
    assert (found.capabilities, found.stop) == (capabilities, stop)
    assert license is None or found.license == license


def test_a_real_folder() -> None:
    whole, file = describe(real.smollm2_safetensors()), describe(real.smollm2())
    assert (whole.parameters, whole.shape, whole.stop) == (file.parameters, file.shape, file.stop)
    assert whole.quantization == "BF16" and whole.template == file.template and whole.capabilities == ("completion",)


def test_a_folder_says_more(tmp_path: Path) -> None:
    folder = tmp_path / "name"
    folder.mkdir()
    config = {
        "model_type": "strange",
        "text_config": {"hidden_size": 64, "num_local_experts": 8},
        "eos_token_id": [7, 9],
    }
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "do_sample": True}))
    (folder / "chat_template.jinja").write_text("{% if enable_thinking %}{{ tools }}{% endif %}")
    added = [{"id": 7, "content": "<end>"}, {"id": 8, "content": min(FIM)}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (folder / "README.md").write_text(
        "---\nbase_model: x\nlicense: other\nlicense_name: 'terms of x'\n---\n# license: no\n"
    )
    import numpy as np
    import safetensors.numpy

    safetensors.numpy.save_file(
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int8)}, folder / "model.safetensors"
    )
    found = describe(folder)
    assert (found.architecture, found.quantization, found.parameters) == ("strange", "awq", 11)
    assert found.shape == {"embedding length": 64, "experts": 8}
    assert found.capabilities == ("completion", "tools", "thinking", "insert")
    assert found.sampling == {"temperature": 0.6, "top_k": 20.0} and found.stop == ("<end>",)
    assert found.license == "terms of x"


def test_any_architecture_and_parts(tmp_path: Path) -> None:
    found = describe(write(tmp_path / "m-IQ4_XS.gguf", arch="mamba", extra={"mamba.pooling_type": 1}))
    assert (found.architecture, found.quantization, found.capabilities) == ("mamba", "IQ4_XS", ("embedding",))
    assert found.stop == () and found.template is None and found.license is None
    parts = write_parts(tmp_path / "parts" / "model-Q8_0.gguf", per_file=2)
    for path in (parts[1], parts[0].parent):
        found = describe(path)
        assert found.files == tuple(parts) and found.quantization == "Q8_0" and found.formats[0].tensors == 4


def test_what_is_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        describe(tmp_path / "absent")
    (tmp_path / "m.gguf").write_bytes(real.smollm2().read_bytes()[:3_000_000])
    with pytest.raises(CheckpointError, match="incomplete"):
        describe(tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="has no weights"):
        describe(tmp_path)
