"""Sliding windows in cache groups, against a count of positions: which blocks a sequence holds, which hits are valid.

The brute force knows rows and windows alone: the row at position p sees [p - window + 1, p]. Blocks, their order of
eviction and the tree of prefixes are CacheGroups' own.
"""

import random

import pytest

from octavo.engine.block_pool import NO_BLOCK
from octavo.engine.prefix_cache import ABSENT
from tests.engine.harness import Harness
from tests.engine.scripted_runner import make_facts

VOCAB = 24


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(1, VOCAB) for _ in range(length))


def seen_blocks(position: int, window: int, block: int) -> set[int]:
    """Blocks with a key that the row at `position` sees, its own position apart: what must outlive the step before."""
    first = max(0, position - window + 1) if window else 0
    return {key // block for key in range(first, position)}


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("windows", [(0, 32), (40,), (0, 2, 17, 100)])
def test_blocks_out_of_the_window_are_freed(windows: tuple[int, ...], block: int) -> None:
    """After every step of a long prompt and its answer a sliding group holds what the next row sees, and room ahead.
    Blocks are freed when one becomes full: at worst what the row after the last full block sees is still held."""
    facts = make_facts(pages=1000, windows=windows, max_model_len=640, max_rows=64)
    world = Harness(facts, block_size=block, prefix_caching=False)
    name = world.submit(prompt_of(400), max_tokens=200, ignore_eos=True)
    freed = 0
    while world.core.has_work:
        world.step()
        world.check()
        live = world.core.roster.requests.get(name)
        if live is None:
            break
        (sequence,) = live.sequences
        for window, held in zip(windows, sequence.blocks, strict=True):
            kept = {i for i, each in enumerate(held) if each != NO_BLOCK}
            ahead = {i for i in kept if (i + 1) * block > sequence.computed}  # not full: still written to
            assert seen_blocks(sequence.computed, window, block) <= kept
            assert kept - ahead <= seen_blocks(sequence.computed // block * block, window, block)
            freed += len(held) - len(kept)
        pool = world.core.roster.cache.pool
        held_now = sum(len(held) - first for held, first in zip(sequence.blocks, sequence.first_block, strict=True))
        assert pool.free + held_now == pool.total
    assert freed > 0
    world.check_idle()


@pytest.mark.parametrize("block", [16, 32, 64])
def test_a_hit_outlives_the_blocks_that_no_window_needs(block: int) -> None:
    """Others take the sliding blocks at the prompt's beginning, which were freed first; the hit stays as long."""
    windows = (0, 32)
    pages_per_block = block // 16
    full = 320 // block  # blocks of the prompt in the full group
    pages = 1 + pages_per_block * (2 * full + 6)
    world = Harness(make_facts(pages=pages, windows=windows, max_model_len=384, max_rows=64), block_size=block)
    prompt = prompt_of(321)
    world.submit(prompt, max_tokens=1)
    world.drain()
    cache = world.core.roster.cache
    while cache.pool.evictions < 2:  # little by little, so that the oldest go first
        world.submit(prompt_of(block + 1, seed=cache.pool.evictions + 100 + world._number), max_tokens=1)
        world.drain()
    sliding = [node.blocks[1] for node in cache.prefixes._nodes.values() if node.parent is not None]
    assert ABSENT in sliding
    again = world.submit(prompt, max_tokens=1)
    world.drain()
    assert world.books[again].prompt.cached_tokens == 320 // block * block
    world.check_idle()


@pytest.mark.parametrize("windows", [(0,), (32,), (0, 32), (0, 17, 100), (2, 48)])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_hits_are_the_longest_that_every_group_can_serve(windows: tuple[int, ...], block: int) -> None:
    """Blocks are lost at random; the hit is the longest whose next row finds all of its keys, by counting positions."""
    source = random.Random(block + sum(windows))
    facts = make_facts(pages=600, windows=windows, max_model_len=640, max_rows=640, max_seqs=8)
    lengths = set()
    for _ in range(40):
        world = Harness(facts, block_size=block)
        prompt = prompt_of(source.randrange(block + 1, 500), source.randrange(3))
        world.submit(prompt, max_tokens=1)
        world.drain()
        cache = world.core.roster.cache
        known = cache.prefixes.known_blocks()
        for lost in source.sample(known, source.randrange(min(len(known), 6) + 1)):
            cache.prefixes.detach(lost)
            cache.pool.forget(lost)
        world.check()
        nodes = sorted((n for n in cache.prefixes._nodes.values() if n.parent is not None), key=depth)
        there = [[node.blocks[g] != ABSENT for node in nodes] for g in range(len(windows))]
        whole = len(prompt) - 1  # the last id is computed anew
        wanted = max(
            count * block
            for count in range(min(len(nodes), whole // block) + 1)
            if all(there[g][i] for g, window in enumerate(windows) for i in seen_blocks(count * block, window, block))
        )
        again = world.submit(prompt, max_tokens=1)
        world.drain()
        assert world.books[again].prompt.cached_tokens == wanted
        lengths.add(wanted)
    assert len(lengths) > 2


def depth(node: object) -> int:
    """Nodes in front of this one."""
    count = 0
    while node.parent is not None:  # type: ignore[attr-defined]
        node, count = node.parent, count + 1  # type: ignore[attr-defined]
    return count
