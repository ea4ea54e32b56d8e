"""GGUF metadata -> the configuration names of Hugging Face, and a GGUF file as a Checkpoint.

Which architectures are built says families.py. It knows how a file spells things, not how a model computes; whatever
holds for one architecture alone stands in its model.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.families import family_of
from octavo.checkpoints.gguf import ArrayRef, GGUFFile, read_arrays, scalars
from octavo.checkpoints.gguf_keys import LARGEST, Keys
from octavo.checkpoints.gguf_rope import rope_scaling
from octavo.checkpoints.gguf_shards import PART, read_model
from octavo.checkpoints.kinds import refuse_gguf
from octavo.checkpoints.pooling import GGUF_RANK
from octavo.errors import CheckpointError, UnsupportedModel

# name in config.json -> key of the architecture: whole numbers that every file has
COUNTS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
# the same: real numbers that some have
REALS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}

# architecture with experts -> model_type; llama with experts is what Mixtral is
MIXTURES = {"llama": "mixtral", **{name: name for name in ("qwen2moe", "qwen3moe", "gpt-oss", "granitemoe", "olmoe")}}

# general.file_type -> what people call the mixture (llama.h, llama_ftype)
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
QUANTIZATION_SUFFIX = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16|MXFP4)$", re.IGNORECASE)


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


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The configuration of Hugging Face from a file's metadata. Raises CheckpointError for missing or absurd keys,
    UnsupportedModel for an architecture or rope scaling that is not built. What a file does not say is left to the
    defaults of the family."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        key = "general.architecture"
        raise CheckpointError(f"broken GGUF {file.path}: key '{key}' is missing", path=str(file.path), key=key)
    family_of(architecture, "general.architecture", file.path)
    keys = Keys(file, architecture)
    config: dict[str, Any] = {"model_type": architecture, **_experts(keys)}
    config.update((name, keys.count(key)) for name, key in COUNTS.items())
    config.update((name, keys.real(key)) for name, key in REALS.items() if keys.get(key) is not None)
    if not {"rms_norm_eps", "norm_epsilon"} & config.keys():
        keys.fail(f"{architecture}.{REALS['rms_norm_eps']}", "is missing")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = keys.count("attention.key_length", hidden // heads if hidden % heads == 0 else None)
    theta = config.setdefault("rope_theta", 10000.0)
    rotary = keys.count("rope.dimension_count", head_dim)
    config |= {
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rope_scaling": rope_scaling(keys, rotary, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": _vocabulary(keys),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "sliding_window": keys.count("attention.sliding_window", 0, least=0) or None,
        "pooling_type": keys.count("pooling_type", 0, least=0),
    }
    if config["pooling_type"] == GGUF_RANK:
        config |= _classifier(file, architecture)
    if types := file.tensors.get("token_types.weight"):
        config["type_vocab_size"] = types.shape[0]
    if rotary != head_dim:
        config["partial_rotary_factor"] = rotary / head_dim
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        config[f"{ours}_token_id"] = _token(file, theirs)
    return config


def _experts(keys: Keys) -> dict[str, Any]:
    """What a mixture of experts has besides, and its model_type. Raises UnsupportedModel where an architecture has
    experts that it is not built with."""
    experts = keys.count("expert_count", 0, least=0)
    if not experts:
        return {}
    if keys.architecture not in MIXTURES:
        raise UnsupportedModel(
            f"{keys.file.path}: {keys.architecture} with experts is not built (key {keys.architecture}.expert_count); "
            f"architectures that are built with them: {', '.join(MIXTURES)}"
        )
    inner = keys.count("feed_forward_length")
    return {
        "model_type": MIXTURES[keys.architecture],
        "num_experts": experts,
        "num_experts_per_tok": keys.count("expert_used_count"),
        "moe_intermediate_size": keys.count("expert_feed_forward_length", inner),
        "shared_expert_intermediate_size": keys.count("expert_shared_feed_forward_length", inner),
    }


def _classifier(file: GGUFFile, architecture: str) -> dict[str, Any]:
    """The head of a reranker. Raises UnsupportedModel for a file without all of it: BERT's pooler is often left out."""
    wanted = ("cls.weight", "cls.output.weight") if architecture == "bert" else ("cls.output.weight",)
    missing = [name for name in wanted if name not in file.tensors]
    if missing:
        raise UnsupportedModel(
            f"{file.path} is a reranker (key {architecture}.pooling_type) without the tensor {missing[0]}: its scores "
            "would not be the model's; give the folder of safetensors"
        )
    labels = file.tensors[wanted[-1]].shape[0]
    return {"architectures": [f"{architecture.capitalize()}ForSequenceClassification"], "num_labels": labels}


def _vocabulary(keys: Keys) -> int:
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
