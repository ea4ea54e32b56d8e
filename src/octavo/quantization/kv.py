"""KV cache dtypes: their names, their sizes, and the rounding to bf16.

It knows nothing of pages or layouts of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError


@dataclass(frozen=True)
class KVDtype:
    """A dtype of cached keys and values; `element_bytes` each."""

    name: str
    element_bytes: int


KV_DTYPES = {"bf16": KVDtype("bf16", 2), "float32": KVDtype("float32", 4)}

# what users of other servers write -> our names
ALIASES = {
    "auto": "bf16", "bfloat16": "bf16", "f32": "float32", "fp32": "float32",
    "f16": "fp16", "half": "fp16", "float16": "fp16", "q8_0": "int8",
    "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
}  # fmt: skip
PLANNED = ("fp16", "int8", "fp8")  # named by the design, not built


def kv_dtype(name: str) -> KVDtype:
    """The KV dtype of a name or alias. Raises ConfigError for `--kv-cache-dtype`."""
    known = ALIASES.get(name.lower(), name.lower())
    if known in KV_DTYPES:
        return KV_DTYPES[known]
    supported = ", ".join(KV_DTYPES)
    if known in PLANNED:
        raise ConfigError(
            f"--kv-cache-dtype {name}: {known} is not supported yet; supported: {supported}", flag="--kv-cache-dtype"
        )
    raise ConfigError(f"--kv-cache-dtype {name}: unknown dtype; supported: {supported}", flag="--kv-cache-dtype")


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 of any shape -> the bits of bf16, to nearest, ties to even; a NaN stays a (quiet) NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # adding 0x7fff, and one more if the kept part is odd, carries into it exactly when rounding goes up
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
