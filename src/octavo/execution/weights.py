"""Weights: where each packed weight and float table lies in its region, and filling them from a checkpoint.

Tensor by tensor through a bounce buffer: a file is read with pread, packed straight into its place and never kept, so
that memory never holds two copies. It knows layouts and files, not what a weight is used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.models.source import WeightSource, read_floats
from octavo.quantization.format import format_named
from octavo.quantization.panels import PANEL, layout_named, pack_into, packed_bytes

ALIGN = 4096  # a weight begins at a page: its stream shares no page with its neighbour
PREFETCH_SLACK = 8192  # bytes after the last weight that kernels may prefetch
BOUNCE_BYTES = 4 << 20  # of file read at a time, per thread
ROUNDED_BYTES = 1 << 20  # the same where floats are rounded, which takes eight times as much in temporary arrays
Progress = Callable[[int, int], None]  # tensors done, tensors in all


@dataclass(frozen=True)
class Place:
    """A packed weight at [offset, offset + nbytes) of the weights' region. n columns of the product, k of its sum; the
    matrices of all experts one after the other."""

    source: WeightSource
    layout: str
    n: int
    k: int
    offset: int
    nbytes: int
    experts: int = 1


def place_weights(sources: Mapping[str, WeightSource], layouts: Mapping[str, str]) -> tuple[dict[str, Place], int]:
    """Name -> place of every packed weight (`layouts`: name -> layout id), and the bytes of the region."""
    places: dict[str, Place] = {}
    end = 0
    for name, layout in layouts.items():
        source = sources[name]
        experts, n, k = source.matrices
        nbytes = experts * packed_bytes(layout_named(layout), n, k)
        places[name] = Place(source, layout, n, k, end, nbytes, experts)
        end += -(-nbytes // ALIGN) * ALIGN
    return places, end + PREFETCH_SLACK


def load_weights(
    checkpoint: Checkpoint,
    places: Mapping[str, Place],
    region: NDArray[np.uint8],
    *,
    threads: int,
    progress: Progress | None = None,
) -> None:
    """Fill `region` ([bytes] uint8). Raises CheckpointError for a file that became shorter."""
    done = 0
    order = sorted(places.values(), key=lambda place: -place.nbytes)  # the long ones first: an even end
    with ThreadPoolExecutor(threads, thread_name_prefix="octavo-load") as pool:
        for _ in pool.map(lambda place: _load(checkpoint, place, region), order):
            done += 1
            if progress is not None:
                progress(done, len(order))


def _load(checkpoint: Checkpoint, place: Place, region: NDArray[np.uint8]) -> None:
    source, layout = place.source, layout_named(place.layout)
    row = format_named(source.format).row_bytes(place.k)
    out = region[place.offset : place.offset + place.nbytes].reshape(place.experts, -1)
    step = max(1, (ROUNDED_BYTES if source.rounded else BOUNCE_BYTES) // (row * PANEL)) * PANEL
    bounce = np.empty(min(step, place.n) * row, np.uint8)
    per_panel = packed_bytes(layout, PANEL, place.k)
    for expert in range(place.experts):
        read = source.reader(checkpoint, expert)
        for first in range(0, place.n, step):
            count = min(step, place.n - first)
            fmt, raw = source.blocks(read(first, count, bounce), (count, place.k))
            at = first // PANEL * per_panel
            pack_into(out[expert, at : at + packed_bytes(layout, count, place.k)], fmt, raw, count, place.k, layout)


def float_table(checkpoint: Checkpoint, source: WeightSource) -> NDArray[np.float32]:
    """A norm's weight or a bias as float32."""
    return read_floats(checkpoint, source).reshape(-1)


def aligned_offsets(sizes: Iterable[tuple[str, int]]) -> tuple[dict[str, int], int]:
    """Name -> offset of tables laid one after the other at multiples of 64 bytes, and their end."""
    offsets: dict[str, int] = {}
    end = 0
    for name, nbytes in sizes:
        offsets[name] = end
        end += -(-nbytes // 64) * 64
    return offsets, end
