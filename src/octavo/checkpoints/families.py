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
