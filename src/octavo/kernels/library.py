"""The native library: loaded once, checked against our layouts, asked which instruction sets run here.

It knows how to get memory from a `Machine` and look at it as numpy arrays; it does not know models or steps.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ConfigError, OctavoError
from octavo.execution.layout import ABI, LAYOUT_HASH

try:
    from octavo.kernels import _native
except ImportError as error:  # a source tree without a build
    raise OctavoError(
        f"the native library is not built ({error}). In a clone: python3 dev build; else: pip install octavo"
    ) from error

HEAD_ROWS: int = _native.HEAD_ROWS
BF16_DOT = frozenset({"amx", "avx512bf16"})  # variants whose attention rounds q and p to bf16 over bf16 pages

if (_native.ABI, _native.LAYOUT_HASH) != (ABI, LAYOUT_HASH):
    raise OctavoError("the native library was built for another version of octavo. In a clone: python3 dev build")


def runnable_variants() -> list[str]:
    """Names of the ISA variants that this build has and this processor runs, best first."""
    return list(_native.variants())


def sums_super_blocks(isa: str) -> bool:
    """Whether kernels of a variant ("auto": the best here) sum super-blocks in integers: only the matrix unit gains."""
    return (runnable_variants()[0] if isa == "auto" else isa) == "amx"


def new_machine(*, isa: str, threads: int, scratch_bytes: int) -> Any:
    """A native Machine. isa: a variant's name or "auto"; scratch_bytes: per thread.

    Raises ConfigError when the variant does not exist or cannot run here.
    """
    try:
        return _native.Machine("" if isa == "auto" else isa, threads, scratch_bytes)
    except ValueError as error:
        raise ConfigError(str(error), flag="OCTAVO_ISA") from error


def region_bytes(machine: Any, region: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """The memory of a region as [nbytes] uint8; valid while the machine lives."""
    if nbytes == 0:
        return np.empty(0, np.uint8)
    memory = (ctypes.c_uint8 * nbytes).from_address(machine.address(region))
    return np.ctypeslib.as_array(memory)


def oracle_linear(layout: str, weights: npt.NDArray[np.uint8], k: int, acts: npt.NDArray[np.uint8], *, rows: int,
                  panels: int, fused: bool) -> npt.NDArray[np.float32]:  # fmt: skip
    """The scalar oracle of order: packed panels x activation rows -> [rows, 32 * panels] float32."""
    out = np.zeros((rows, 32 * panels), np.float32)
    _native.oracle_linear(
        layout, weights.ctypes.data, k, panels, acts.ctypes.data, rows, out.ctypes.data, 32 * panels, fused
    )
    return out


def oracle_quantize(x: npt.NDArray[np.float32], span: int) -> npt.NDArray[np.uint8]:
    """[rows, K] -> quantized rows [rows, act_row_bytes(K, span)], as every kernel must give them; the padding is zero.

    span: values of a row that share a scale, 32 or 256.
    """
    rows, k = x.shape
    source = np.ascontiguousarray(x, np.float32)
    out = np.zeros((rows, (k // 32 * 48 * (1 if span == 32 else 2) + 63) // 64 * 64), np.uint8)
    for row in range(rows):
        _native.oracle_quantize_row(source[row].ctypes.data, k, span, out[row].ctypes.data)
    return out
