"""Which architectures are built: their names in config.json and in GGUF, and who builds them. A literal table.

It stands below the models, so that a file of another architecture is refused before its keys are read. It imports no
model and knows nothing of how one computes.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from octavo.errors import UnsupportedModel

# model_type of config.json or general.architecture of GGUF -> module:function
FAMILIES = {
    "llama": "octavo.models.llama:from_config",  # in GGUF also Mistral and SmolLM2
    "mistral": "octavo.models.llama:from_config",
    "qwen2": "octavo.models.llama:from_config",
    "qwen3": "octavo.models.qwen3:from_config",
    "gemma2": "octavo.models.gemma:from_config",
    "gemma3": "octavo.models.gemma:from_config",  # in GGUF; config.json of the text models says gemma3_text
    "gemma3_text": "octavo.models.gemma:from_config",
    "phi3": "octavo.models.phi3:from_config",  # also Phi-3.5 and Phi-4
    "granite": "octavo.models.granite:from_config",
    "olmo2": "octavo.models.olmo2:from_config",
    "starcoder2": "octavo.models.starcoder2:from_config",
    "mixtral": "octavo.models.mixtral:from_config",  # in GGUF llama with experts
    "qwen2_moe": "octavo.models.qwen2_moe:from_config",
    "qwen2moe": "octavo.models.qwen2_moe:from_config",
    "qwen3_moe": "octavo.models.qwen3_moe:from_config",
    "qwen3moe": "octavo.models.qwen3_moe:from_config",
    "granitemoe": "octavo.models.granite:from_config",
    "olmoe": "octavo.models.olmoe:from_config",
    "gpt_oss": "octavo.models.gpt_oss:from_config",
    "gpt-oss": "octavo.models.gpt_oss:from_config",
    "bert": "octavo.models.bert:from_config",
    "roberta": "octavo.models.bert:roberta",
    "xlm-roberta": "octavo.models.bert:roberta",
}


def family_of(name: object, key: str, path: Path) -> str:
    """The module:function of an architecture. Raises UnsupportedModel that names the key and the nearest family."""
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    said = str(name)[:60].lower()
    near = get_close_matches(said, FAMILIES, n=1, cutoff=0.65) or [each for each in FAMILIES if said[:3] == each[:3]]
    nearest = f"the nearest family that is: {near[0]}; " if near else ""
    raise UnsupportedModel(
        f"architecture '{str(name)[:60]}' is not supported ({path}, key {key}); {nearest}"
        f"supported: {', '.join(FAMILIES)}",
        param=key,
    )
