"""One arena for all Programs of a model: offsets from the bounds, no two live buffers in one place.

Phases are numbered over the Programs in the order in which a step runs them; a buffer lives from the phase that writes
it to the last that reads it. It knows no kernel and no address.
"""

from __future__ import annotations

from collections.abc import Iterable

from octavo.lowering.lowered import ArenaPlan, Buffer
from octavo.program.symbols import Values

ALIGN = 64


def plan_arena(buffers: Iterable[Buffer], bounds: Values) -> ArenaPlan:
    """Largest first, each at the lowest offset where no buffer that lives at the same time lies.

    A buffer with `inside` takes the place of the one it names, which then lives as long as both.
    """
    every = {buffer.name: buffer for buffer in buffers}
    roots: dict[str, str] = {}
    for name, buffer in every.items():  # a buffer is listed after the one that it takes over
        roots[name] = name if buffer.inside is None else roots[buffer.inside]
    lives: dict[str, tuple[int, int, int]] = {}  # root -> first, last, bytes
    sizes: dict[str, int] = {}
    for name, buffer in every.items():
        sizes[name] = _aligned(buffer.rows.at(bounds) * buffer.row_bytes)
        first, last, size = lives.get(roots[name], (buffer.first, buffer.last, 0))
        lives[roots[name]] = (min(first, buffer.first), max(last, buffer.last), max(size, sizes[name]))
    placed: list[tuple[int, int, int, int]] = []  # offset, bytes, first, last
    offsets: dict[str, int] = {}
    for root, (first, last, size) in sorted(lives.items(), key=lambda item: -item[1][2]):
        offset = 0
        for start, length, begin, end in sorted(placed):
            if begin <= last and first <= end:
                if offset + size <= start:
                    break
                offset = max(offset, start + length)
        offsets[root] = offset
        placed.append((offset, size, first, last))
    total = max((offset + size for offset, size, _, _ in placed), default=0)
    return ArenaPlan(every, {name: offsets[roots[name]] for name in every}, sizes, total)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
