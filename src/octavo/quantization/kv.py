"""KV cache dtypes: their names, their sizes and layout ids, and the rounding to bf16, fp16 and int8.

The one place in Python where a dtype is added (in native code: native/kernel.h, KvDtype). It knows nothing of pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ConfigError


@dataclass(frozen=True)
class KVDtype:
    """A dtype of cached keys and values: `element_bytes` each, `scale_bytes` for a head's keys (or values) of a token.

    layout: id of the pages' layout; number: the same in native code.
    """

    name: str
    number: int
    layout: str
    element_bytes: int
    scale_bytes: int = 0

    def token_bytes(self, head_dim: int) -> int:
        """Bytes of the keys and values of one token and head."""
        return 2 * (head_dim * self.element_bytes + self.scale_bytes)


KV_DTYPES = {
    each.name: each
    for each in (
        KVDtype("bf16", 0, "kv.bf16.t16.1", 2),
        KVDtype("float32", 1, "kv.f32.t16.1", 4),
        KVDtype("int8", 2, "kv.int8.t16.1", 1, scale_bytes=4),
        KVDtype("fp16", 3, "kv.f16.t16.1", 2),
    )
}

# what users of other servers write -> our names
ALIASES = {
    "auto": "bf16", "bfloat16": "bf16", "f32": "float32", "fp32": "float32",
    "f16": "fp16", "half": "fp16", "float16": "fp16", "q8_0": "int8",
    "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
}  # fmt: skip
PLANNED = {"fp8": "int8"}  # named by the design, not built -> what takes as much memory


def kv_dtype(name: str) -> KVDtype:
    """The KV dtype of a name or alias. Raises ConfigError for `--kv-cache-dtype`."""
    known = ALIASES.get(name.lower(), name.lower())
    if known in KV_DTYPES:
        return KV_DTYPES[known]
    supported = ", ".join(KV_DTYPES)
    if known in PLANNED:
        raise ConfigError(
            f"--kv-cache-dtype {name}: {known} is not supported; {PLANNED[known]} takes as much memory; "
            f"supported: {supported}",
            flag="--kv-cache-dtype",
        )
    raise ConfigError(f"--kv-cache-dtype {name}: unknown dtype; supported: {supported}", flag="--kv-cache-dtype")


def kv_layout(layout: str) -> KVDtype:
    """The KV dtype of a layout id. KeyError if there is none."""
    return {each.layout: each for each in KV_DTYPES.values()}[layout]


def round_to_int8(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 [..., head_dim] -> codes of the same shape and scales [...]; value = code * scale.

    scale = max|x| / 127, code = x * (127 / max|x|) to nearest even, in float32; below 1e-36 all is zero. What is not
    finite gets codes of 0 and a scale of infinity, so that all that reads it ends as not a number.
    """
    values = np.ascontiguousarray(values, np.float32)
    top = np.abs(values).max(axis=-1)
    finite = np.isfinite(values).all(axis=-1)
    used = finite & (top >= np.float32(1e-36))
    safe = np.where(used, top, np.float32(127))
    scaled = np.where(used[..., None], values, np.float32(0)) * (np.float32(127) / safe)[..., None]
    scales = np.where(used, safe / np.float32(127), np.where(finite, np.float32(0), np.float32(np.inf)))
    return np.rint(scaled).astype(np.int8), scales.astype(np.float32)


def round_to_fp16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """float32 of any shape -> fp16, to nearest, ties to even; beyond 65,504 an infinity (which ends a request)."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32).astype(np.float16)


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 of any shape -> the bits of bf16, to nearest, ties to even; a NaN stays a (quiet) NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # adding 0x7fff, and one more if the kept part is odd, carries into it exactly when rounding goes up
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
