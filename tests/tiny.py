"""Tiny models with random weights and a byte-level tokenizer, as Hugging Face folders and as GGUF files.

Made from numpy, tokenizers and the gguf package in a fraction of a second. Weights are wide enough that logits differ
clearly: greedy answers are not ties. The same seed gives the same weights in both kinds of files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests import encoded

Floats = NDArray[np.float32]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("Ġ", "a"))
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 288  # of the weights: more than the tokenizer's ids, a multiple of 32


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """config.json of a two-layer model; `changes` overwrite or add keys."""
    names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    found: dict[str, Any] = {
        "architectures": [names[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    found.update(changes)
    return found


def weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Floats]:
    """Hugging Face name -> float32 array, [out, in] for linears."""
    random = np.random.default_rng(seed)
    width, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim

    def matrix(n: int, k: int) -> Floats:
        return (random.standard_normal((n, k)) * 1.5 / np.sqrt(k)).astype(np.float32)

    def vector(n: int, around: float) -> Floats:
        return (around + 0.2 * random.standard_normal(n)).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        found[f"{name}.input_layernorm.weight"] = vector(width, 1.0)
        for layer, n in (("q", q), ("k", kv), ("v", kv)):
            found[f"{name}.self_attn.{layer}_proj.weight"] = matrix(n, width)
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                found[f"{name}.self_attn.{layer}_proj.bias"] = vector(n, 0.0)
        found[f"{name}.self_attn.o_proj.weight"] = matrix(width, q)
        if config.get("attention_bias"):
            found[f"{name}.self_attn.o_proj.bias"] = vector(width, 0.0)
        found[f"{name}.post_attention_layernorm.weight"] = vector(width, 1.0)
        found[f"{name}.mlp.gate_proj.weight"] = matrix(inner, width)
        found[f"{name}.mlp.up_proj.weight"] = matrix(inner, width)
        found[f"{name}.mlp.down_proj.weight"] = matrix(width, inner)
    found["model.norm.weight"] = vector(width, 1.0)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = matrix(config["vocab_size"], width)
    return found


def vocabulary() -> dict[str, int]:
    """Token -> id: the special tokens, 256 bytes as byte-level BPE spells them, and the results of MERGES."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    return {token: i for i, token in enumerate(tokens)}


def tokenizer() -> Tokenizer:
    """A byte-level tokenizer whose every byte is a token; digits stand alone, as GGUF's `smollm` has them."""
    made = Tokenizer(BPE(vocabulary(), list(MERGES)))
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def folder(path: Path, config: Mapping[str, Any] | None = None, *, dtype: str = "float32", seed: int = 0) -> Path:
    """A Hugging Face folder: config.json, model.safetensors (float32 or bfloat16), tokenizer, template, defaults."""
    chosen = dict(config or globals()["config"]())
    path.mkdir(parents=True, exist_ok=True)
    chosen["torch_dtype"] = dtype
    _write_json(path / "config.json", chosen)
    _write_json(path / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [2, 0]})
    tokenizer().save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[2],
            "chat_template": TEMPLATE,
            "model_max_length": chosen["max_position_embeddings"],
        },
    )
    _write_safetensors(path / "model.safetensors", weights(chosen, seed), dtype)
    return path


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2))


def bf16_bits(values: Floats) -> NDArray[np.uint16]:
    """Finite float32 -> bits of bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_safetensors(path: Path, tensors: Mapping[str, Floats], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, values in tensors.items():
        raw = (values if dtype == "float32" else bf16_bits(values)).tobytes()
        kind = {"float32": "F32", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [end, end + len(raw)]}
        parts.append(raw)
        end += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


GGUF_STEMS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """Hugging Face name -> GGUF name."""
    stem, _, kind = name.rpartition(".")
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in fixed:
        return f"{fixed[stem]}.{kind}"
    _, _, block, layer = stem.split(".", 3)
    return f"blk.{block}.{GGUF_STEMS[layer]}.{kind}"


def paired(values: Floats, heads: int) -> Floats:
    """Rows of halves (i, i + half of a head) -> rows of pairs (2i, 2i + 1), as llama's GGUF files have q and k."""
    split = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def gguf_file(
    path: Path,
    config: Mapping[str, Any] | None = None,
    *,
    quantization: str | Mapping[str, str] = "q8_0",
    seed: int = 0,
) -> Path:
    """A GGUF file of the same weights. quantization: a format of matrices, or GGUF stem -> format (others: f32)."""
    chosen = dict(config or globals()["config"]())
    architecture = {"mistral": "llama"}.get(chosen["model_type"], chosen["model_type"])
    writer = gguf.GGUFWriter(str(path), architecture)
    write_metadata(writer, chosen)
    for name, values in weights(chosen, seed).items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = chosen["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            values = paired(values, heads)
        target = gguf_name(name)
        stem = target.rpartition(".")[0].rpartition(".")[2]
        kind = quantization if isinstance(quantization, str) else quantization.get(stem, "f32")
        if values.ndim < 2 or kind == "f32":
            writer.add_tensor(target, values)
            continue
        writer.add_tensor(target, encoded.encode(kind, values), raw_dtype=gguf.GGMLQuantizationType[kind.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The keys that every decoder has, and the tokenizer's."""
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(config["rope_theta"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    tokens = list(vocabulary())
    unused = [f"[unused{i}]" for i in range(config["vocab_size"] - len(tokens))]
    control, normal, empty = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + unused)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens] + [empty] * len(unused))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
