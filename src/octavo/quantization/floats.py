"""F32, F16 and BF16 weights: one element a block."""

from __future__ import annotations

import numpy as np

from octavo.quantization.format import Bytes, Floats, Format


def widen_f32(raw: Bytes) -> Floats:
    """raw [n, 4] -> float32 [n], the same bits."""
    return raw.view("<f4").reshape(-1).astype(np.float32)


def widen_f16(raw: Bytes) -> Floats:
    """raw [n, 2] -> float32 [n], exact."""
    return raw.view("<f2").reshape(-1).astype(np.float32)


def widen_bf16(raw: Bytes) -> Floats:
    """raw [n, 2] -> float32 [n]: the upper half of the same bits."""
    return (raw.view("<u2").reshape(-1).astype(np.uint32) << np.uint32(16)).view(np.float32)


F32 = Format("f32", 1, 4, "f32.p32.k1.1", widen=widen_f32)
F16 = Format("f16", 1, 2, "f16.p32.k1.1", widen=widen_f16)
BF16 = Format("bf16", 1, 2, "bf16.p32.k1.1", widen=widen_bf16)
