"""Small models of every family with random weights, from the real configuration classes of transformers.

As folders, saved by transformers, and as GGUF files with the names of the gguf package and the keys that llama.cpp's
convert_hf_to_gguf.py writes. Sizes are odd, groups of heads 1 to 8, windows shorter than the prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests import encoded, tiny

LONGEST = 120  # ids of the longest prompt
FACTORS = {"long_factor": [1.0, 2.5, 4.0, 7.0, 9.0, 11.0], "short_factor": [1.0, 1.1, 1.3, 1.5, 2.0, 2.5]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **FACTORS}


@dataclass(frozen=True)
class Case:
    """A configuration. changes: of SIZES. arch: in gguf. metadata: keys of the family. prompts: lengths, if not all."""

    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    arch: str = ""
    metadata: Callable[[gguf.GGUFWriter, Mapping[str, Any]], None] | None = None
    lengths: tuple[int, ...] = ()


SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip


def _gemma(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _phi3(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    original = config["original_max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    factor = config["max_position_embeddings"] / original
    writer.add_rope_scaling_attn_factors((1 + np.log(factor) / np.log(original)) ** 0.5)
    for name in ("long", "short"):
        writer.add_tensor(f"rope_factors_{name}.weight", np.array(FACTORS[f"{name}_factor"], np.float32))


def _granite(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _experts(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_expert_count(config.get("num_local_experts", config.get("num_experts")))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config.get("moe_intermediate_size", config["intermediate_size"]))
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _gpt_oss(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    _experts(writer, config)
    rope = config["rope_parameters"]
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 128,
}  # fmt: skip
CASES: dict[str, Case] = {
    "qwen3": Case("qwen3", {"head_dim": 32, "num_attention_heads": 7, "num_key_value_heads": 1}, "QWEN3"),
    "qwen3, tied, window": Case("qwen3", {
        "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1,
        "num_key_value_heads": 4, "attention_bias": True,
    }),
    "qwen3, yarn": Case("qwen3", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64,
    }}),
    "gemma2": Case("gemma2", {
        "sliding_window": 19, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0, "num_attention_heads": 8, "num_key_value_heads": 1,
    }, "GEMMA2", _gemma),
    "gemma2, no caps": Case("gemma2", {
        "sliding_window": 40, "query_pre_attn_scalar": 24, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "hidden_size": 72,
    }),
    "gemma3": Case("gemma3_text", {
        "sliding_window": 19, "num_hidden_layers": 7, "query_pre_attn_scalar": 32, "head_dim": 32,
        "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 96,
    }, "GEMMA3", _gemma),
    "gemma3, linear rope, caps": Case("gemma3_text", {
        "sliding_window": 33, "query_pre_attn_scalar": 20, "final_logit_softcapping": 9.0,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    }),
    "phi3": Case("phi3", {
        "rope_parameters": LONGROPE, "original_max_position_embeddings": 128, "sliding_window": 50,
        "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96,
    }, "PHI3", _phi3),
    "phi3, beyond the first context": Case("phi3", {
        "rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "tie_word_embeddings": True,
    }, "PHI3", _phi3, (65, 80, LONGEST)),
    "granite": Case("granite", {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 1.5,
        "num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 80, "rms_norm_eps": 1e-5,
    }, "GRANITE", _granite),
    "olmo2": Case("olmo2", {
        "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96, "rms_norm_eps": 1e-5,
    }, "OLMO2"),
    "olmo2, group 1, tied": Case("olmo2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "starcoder2": Case("starcoder2", {
        "sliding_window": None, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96,
    }, "STARCODER2", lambda writer, config: writer.add_layer_norm_eps(config["norm_epsilon"])),
    "mixtral": Case("mixtral", {
        "num_local_experts": 5, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96,
        "sliding_window": None, "rms_norm_eps": 1e-5,
    }, "LLAMA", _experts),
    "mixtral, window, ragged": Case("mixtral", {
        "num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 23, "intermediate_size": 76,
    }),
    "qwen3_moe": Case("qwen3_moe", {
        "num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "norm_topk_prob": True,
        "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 32,
    }, "QWEN3MOE", _experts),
    "qwen3_moe, some layers, weights of all": Case("qwen3_moe", {
        "num_experts": 17, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": False,
        "num_hidden_layers": 5, "mlp_only_layers": [3], "decoder_sparse_step": 2, "use_sliding_window": True,
        "sliding_window": 21, "attention_bias": True,
    }),
    "qwen2_moe": Case("qwen2_moe", {
        "num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "num_attention_heads": 7,
        "num_key_value_heads": 1, "head_dim": 32, "shared_expert_intermediate_size": 160,
    }, "QWEN2MOE", _experts),
    "qwen2_moe, some layers, window, weights of the chosen": Case("qwen2_moe", {
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": True,
        "shared_expert_intermediate_size": 76, "num_hidden_layers": 5, "mlp_only_layers": [3], "qkv_bias": False,
        "use_sliding_window": True, "sliding_window": 21, "max_window_layers": 3,
    }),
    "olmoe": Case("olmoe", {
        "num_experts": 7, "num_experts_per_tok": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "hidden_size": 96, "rms_norm_eps": 1e-5,
    }, "OLMOE", _experts),
    "granitemoe": Case("granitemoe", {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 1.5,
        "num_local_experts": 6, "num_experts_per_tok": 2, "num_attention_heads": 5, "num_key_value_heads": 1,
        "hidden_size": 80, "rms_norm_eps": 1e-5,
    }, "GRANITE_MOE", lambda writer, config: (_granite(writer, config), _experts(writer, config))),
    "gpt_oss": Case("gpt_oss", {
        "num_local_experts": 6, "num_experts_per_tok": 4, "sliding_window": 19, "rope_parameters": YARN,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-5,
    }, "GPT_OSS", _gpt_oss),
    "gpt_oss, own pattern, plain rope": Case("gpt_oss", {
        "num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 40, "swiglu_limit": 1.5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "intermediate_size": 48,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }),
    "starcoder2, window, own head": Case("starcoder2", {"sliding_window": 21, "tie_word_embeddings": False}),
}  # fmt: skip
# GGUF files of these hold rows of q and k in pairs
PAIRED = ("granite", "granitemoe", "mixtral")


def config_of(case: Case) -> Any:
    """The configuration of transformers."""
    return CONFIG_MAPPING[case.model_type](**{**SIZES, **case.changes})


def folder(path: Path, case: Case, seed: int = 0) -> Path:
    """A folder as `save_pretrained` leaves it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(case), dtype=torch.float32)
        plain = 0.0 if "gemma" in case.model_type else 1.0  # weights of norms: Gemma adds 1
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
            else:
                torch.nn.init.normal_(parameter, mean=plain if name.endswith("norm.weight") else 0.0, std=0.2)
        model.save_pretrained(path)
    return path


def gguf_file(path: Path, case: Case, *, quantization: str | Mapping[str, str] = "f32", seed: int = 0) -> Path:
    """A GGUF file of the same weights; quantization: of matrices whose rows are whole blocks, or by the last part of a
    tensor's name, "" for the rest."""
    known = config_of(case)
    rope = known.rope_parameters.get("full_attention", known.rope_parameters)
    config = {"rope_theta": rope["rope_theta"], **rope, **known.to_dict()}
    config.setdefault("head_dim", known.hidden_size // known.num_attention_heads)
    config["sliding_window"] = case.changes.get("sliding_window")
    model = AutoModelForCausalLM.from_pretrained(folder(path.with_suffix(""), case, seed), dtype=torch.float32)
    arch = getattr(gguf.MODEL_ARCH, case.arch)
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    tiny.write_metadata(writer, config)
    if case.metadata is not None:
        case.metadata(writer, config)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, parameter in model.named_parameters():  # a tied head is named once
        values = parameter.detach().numpy()
        if "gemma" in case.model_type and name.endswith("norm.weight"):
            values = values + np.float32(1)
        layer = name.split(".")[-2]
        name = name.replace("block_sparse_moe.router.", "block_sparse_moe.router.layer.")
        if name.endswith("sinks"):
            writer.add_tensor(f"{names.get_name(name)}.weight", values)
            continue
        if ".experts." in name:
            for key, stacked in stacks(case, name, values):
                _add(writer, names.get_name(key, try_suffixes=(".weight", ".bias")), stacked, quantization)
            continue
        if case.model_type in PAIRED and layer in ("q_proj", "k_proj"):
            values = tiny.paired(values, known.num_attention_heads if layer == "q_proj" else known.num_key_value_heads)
        _add(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), values, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stacks(case: Case, name: str, values: Any) -> list[tuple[str, Any]]:
    """A parameter of transformers' experts -> tensors [experts, n, k] (biases [experts, n]) that GGUF files have."""
    layer, _, parameter = name.replace("block_sparse_moe", "mlp").rpartition(".")
    biased = parameter.endswith("_bias")
    stem, kind = parameter.removesuffix("_bias"), "bias" if biased else "weight"
    if case.model_type == "gpt_oss":
        values = values if biased else values.swapaxes(1, 2)
        parts = {"gate_proj": values[:, ::2], "up_proj": values[:, 1::2]}
    else:
        half = values.shape[1] // 2
        parts = {"gate_proj": values[:, :half], "up_proj": values[:, half:]}
    if stem == "down_proj":
        parts = {"down_proj": values}
    return [(f"{layer}.{key}.{kind}", np.ascontiguousarray(part)) for key, part in parts.items()]


def _add(writer: gguf.GGUFWriter, name: str, values: Any, quantization: str | Mapping[str, str]) -> None:
    part = name.split(".")[-2]
    if not isinstance(quantization, str):
        quantization = quantization.get(part, quantization[""])
    floats = quantization == "f32" or values.shape[-1] % 32 or name.endswith(".bias") or part.startswith("ffn_gate_inp")
    if values.ndim < 2 or floats:
        writer.add_tensor(name, values[0] if len(values) == 1 and values.ndim > 1 else values)
        return
    raw = encoded.encode(quantization, np.ascontiguousarray(values).reshape(-1, values.shape[-1]))
    kind = gguf.GGMLQuantizationType[quantization.upper()]
    writer.add_tensor(name, raw.reshape(*values.shape[:-1], -1), raw_dtype=kind)
