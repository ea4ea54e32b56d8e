"""The GGUF reader against the gguf package, on real and on written files; metadata against Hugging Face's names."""

import math

import gguf
import numpy as np
import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.checkpoints.gguf import ArrayRef, read_gguf
from octavo.checkpoints.gguf_rope import llama3_factors
from octavo.errors import CheckpointError, ModelNotFound, UnsupportedModel
from octavo.quantization.format import format_named
from tests import real

PLAIN = {
    "block_count": 1, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}  # fmt: skip


def write(path, arch="llama", tensors=None, keys=None, extra=None, alignment=None):
    """A small GGUF file by the gguf package. keys: architecture keys; extra: whole keys."""
    writer = gguf.GGUFWriter(path, arch)
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, value in {**PLAIN, **(keys or {})}.items():
        key = f"{arch}.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for key, value in (extra or {}).items():
        kinds = {list: writer.add_array, str: writer.add_string, int: writer.add_uint32}
        kinds[type(value)](key, value)
    rng = np.random.default_rng(0)
    for name, content in (tensors or {"token_embd.weight": ((32, 64), None)}).items():
        shape, kind = content if isinstance(content, tuple) else (content.shape, None)
        values = rng.standard_normal(shape) if isinstance(content, tuple) else content
        values = values.astype(np.float32)
        if kind is None:
            writer.add_tensor(name, values)
        elif kind is gguf.GGMLQuantizationType.NVFP4:  # which the package cannot make
            writer.add_tensor(name, np.zeros((shape[0], shape[1] // 64 * 36), np.uint8), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_a_real_file_reads_as_the_gguf_package_reads_it(name):
    path = real.model(name)
    expected = gguf.GGUFReader(path)
    found = read_gguf(path)
    assert list(found.tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        ours = found.tensors[tensor.name]
        assert ours.format == tensor.tensor_type.name.lower()
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (ours.offset, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
    fields = {key: field for key, field in expected.fields.items() if not key.startswith("GGUF.")}
    assert list(found.metadata) == list(fields)
    metadata = found.metadata | open_checkpoint(path).tokenizer_metadata()
    for key, field in fields.items():
        if isinstance(metadata[key], ArrayRef):
            continue  # an array outside the tokenizer
        assert metadata[key] == field.contents(), key


def test_bytes_of_a_real_tensor_in_pieces():
    checkpoint = open_checkpoint(real.smollm2())
    name = "blk.7.ffn_down.weight"
    (expected,) = (tensor.data for tensor in gguf.GGUFReader(real.smollm2()).tensors if tensor.name == name)
    whole = checkpoint.read(name)
    assert whole.tobytes() == expected.tobytes()
    buffer = np.zeros(1000, np.uint8)
    assert checkpoint.read(name, offset=360, nbytes=720, out=buffer).tobytes() == whole[360:1080].tobytes()
    with pytest.raises(ValueError, match="outside"):
        checkpoint.read(name, offset=1, nbytes=whole.size)


def test_smollm2_as_hugging_face_names_it():
    checkpoint = open_checkpoint(real.smollm2())
    assert checkpoint.kind == "gguf" and checkpoint.display_name == "SmolLM2-135M-Instruct"
    assert checkpoint.weight_format == "Q4_1"
    expected = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": None, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "vocab_size": 49152, "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": 2, "sliding_window": None,
    }  # fmt: skip
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.eos_token_ids == (2,)
    assert checkpoint.chat_template.startswith("{% for message in messages %}")
    assert checkpoint.digest() == real.MODELS["smollm2-135m-instruct"].sha256


def test_qwen2_has_biases_and_its_own_head():
    config = open_checkpoint(real.qwen_half_b()).config
    assert (config["attention_bias"], config["tie_word_embeddings"], config["vocab_size"]) == (True, False, 151936)


@pytest.mark.parametrize("kind", [None, *(gguf.GGMLQuantizationType[name] for name in ("F16", "BF16", "Q4_0", "Q8_0"))])
def test_written_tensors_read_back(tmp_path, kind):
    path = write(tmp_path / "m.gguf", tensors={"token_embd.weight": ((3, 64), kind), "b": ((5,), None)})
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensors["token_embd.weight"]
    assert tensor.shape == (3, 64) and checkpoint.tensors["b"].shape == (5,)
    values = format_named(tensor.format).dequantize(checkpoint.read(tensor.name), tensor.shape)
    original = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert np.abs(values - original).max() < (1e-9 if kind is None else 0.5)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_moves_the_tensors(tmp_path, alignment):
    path = write(tmp_path / "m.gguf", alignment=alignment)
    (expected,) = gguf.GGUFReader(path).tensors
    assert read_gguf(path).tensors["token_embd.weight"].offset == expected.data_offset


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, None),
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
                "rope.scaling.attn_factor": 0.5,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "attention_factor": 0.5 * (0.1 * math.log(4) + 1),
            },
        ),
    ],
)
def test_rope_scaling(tmp_path, keys, expected):
    assert open_checkpoint(write(tmp_path / "m.gguf", keys=keys)).config["rope_scaling"] == expected


def llama3_file(path, factors):
    """A file whose rope factors are given as Llama 3's converter stores them."""
    size = 2 * len(factors)
    keys = {"rope.dimension_count": size, "attention.key_length": size}
    return write(path, keys=keys, tensors={"token_embd.weight": ((32, 64), None), "rope_freqs.weight": factors})


def test_longrope_comes_from_two_tensors(tmp_path):
    keys = {
        "rope.dimension_count": 8, "attention.key_length": 16, "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": 1.25, "context_length": 256,
    }  # fmt: skip
    short, long = np.arange(1, 5, dtype=np.float32), np.arange(2, 6, dtype=np.float32)
    tensors = {"token_embd.weight": ((32, 64), None), "rope_factors_long.weight": long}
    with pytest.raises(CheckpointError, match="'rope_factors_short.weight' is missing"):
        open_checkpoint(write(tmp_path / "n.gguf", keys=keys, tensors=tensors))
    path = write(tmp_path / "m.gguf", keys=keys, tensors={**tensors, "rope_factors_short.weight": short})
    config = open_checkpoint(path).config
    assert config["partial_rotary_factor"] == 0.5
    assert config["rope_scaling"] == {
        "rope_type": "longrope", "long_factor": [2, 3, 4, 5], "short_factor": [1, 2, 3, 4], "attention_factor": 1.25,
        "original_max_position_embeddings": 64, "factor": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognized_by_its_factors(tmp_path, factor):
    # an oracle of its own: transformers computes the inverse frequencies, before and after
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters={**scaling, "rope_theta": 10000.0}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** (-np.arange(0, 128, 2) / 128)
    factors = plain / scaled.numpy().astype(np.float64)
    assert np.allclose(factors, llama3_factors(128, 10000.0, scaling), rtol=1e-5)
    assert open_checkpoint(llama3_file(tmp_path / "m.gguf", factors)).config["rope_scaling"] == scaling
    with pytest.raises(UnsupportedModel, match="rope_freqs.weight"):
        open_checkpoint(llama3_file(tmp_path / "n.gguf", factors + 1))


@pytest.mark.parametrize(
    "change, error, told",
    [
        ({"arch": "mamba"}, UnsupportedModel, "architecture 'mamba'.*general.architecture.*supported: llama, mistral"),
        ({"keys": {"block_count": None}}, CheckpointError, "'llama.block_count' is missing"),
        ({"keys": {"attention.head_count": 0}}, CheckpointError, "head_count' is 0"),
        ({"keys": {"embedding_length": 2**31}}, CheckpointError, "embedding_length"),
        ({"keys": {"feed_forward_length": [96, 128]}}, UnsupportedModel, "differs from layer to layer"),
        ({"keys": {"expert_count": 8}}, CheckpointError, "key 'llama.expert_used_count' is missing"),
        ({"arch": "qwen2vl"}, UnsupportedModel, "key general.architecture.*nearest family that is: qwen2"),
        ({"keys": {"rope.scaling.type": "xpos"}}, UnsupportedModel, "'xpos'.*supported: none, linear, yarn, longrope"),
        ({"keys": {"rope.scaling.type": "yarn"}}, CheckpointError, "rope.scaling.factor' is missing"),
        ({"keys": {"attention.layer_norm_rms_epsilon": float("nan")}}, CheckpointError, "rms_epsilon' is nan"),
    ],
)
def test_what_is_not_built_or_absurd_is_named(tmp_path, change, error, told):
    with pytest.raises(error, match=told):
        open_checkpoint(write(tmp_path / "m.gguf", **change))


def test_an_unsupported_tensor_type_is_named(tmp_path):
    nvfp4 = gguf.GGMLQuantizationType.NVFP4
    path = write(tmp_path / "m.gguf", tensors={"token_embd.weight": ((3, 64), nvfp4)})
    with pytest.raises(UnsupportedModel, match=r"'token_embd.weight'.*NVFP4 is not supported yet; supported: F32"):
        open_checkpoint(path)


def test_end_tokens_of_turn_and_message_count(tmp_path):
    ids = {"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 7}
    assert open_checkpoint(write(tmp_path / "m.gguf", extra=ids)).eos_token_ids == (5, 7)


def test_a_folder_with_one_file_is_that_file(tmp_path):
    write(tmp_path / "a.gguf")
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    write(tmp_path / "b.gguf")
    with pytest.raises(ModelNotFound, match="several GGUF files.*a.gguf, b.gguf"):
        open_checkpoint(tmp_path)


def test_a_file_cut_after_opening_is_told(tmp_path):
    path = write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="token_embd.weight ends at byte"):
        checkpoint.read("token_embd.weight")
