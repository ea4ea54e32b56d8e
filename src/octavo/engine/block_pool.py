"""Blocks of KV memory: which are free, which are owned (and by how many), which are only kept for their content.

A block is `--block-size` tokens of one cache group: one, two or four pages of 16 tokens. The pool counts owners; it
knows neither sequences nor what stands in a block. A block with an identity (the prefix cache knows its content) goes
to the LRU list when its last owner leaves, and is taken from there, oldest first, when no free block is left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from octavo.execution.step import PAGE_TOKENS

NO_BLOCK = -1


class BlockPool:
    """`total` blocks, each free, cached or owned. free + cached + owned = total at any time.

    `evict` is called with a cached block just before it gets a new owner: its identity ends there.
    """

    def __init__(self, pages: int, block_tokens: int, evict: Callable[[int], None] | None = None) -> None:
        """pages: those of the executor with page 0 (the null page); what does not fill a block is left unused."""
        self.pages_per_block = block_tokens // PAGE_TOKENS
        self.total = max(0, pages - 1) // self.pages_per_block
        self.evictions = 0
        self._evict = evict or (lambda block: None)
        self._free = list(range(self.total - 1, -1, -1))  # a stack: the block freed last is the warmest
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._owners = [0] * self.total
        self._known = bytearray(self.total)  # 1: the prefix cache knows the content

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def owned(self) -> int:
        return self.total - len(self._free) - len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that allocate() can give."""
        return len(self._free) + len(self._cached)

    def owners(self, block: int) -> int:
        return self._owners[block]

    def pages(self, block: int) -> range:
        """The executor's pages of a block; page 0 is never among them."""
        first = 1 + block * self.pages_per_block
        return range(first, first + self.pages_per_block)

    def allocate(self) -> int:
        """A block with one owner, its content void. The caller has looked at `available`."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self.evictions += 1
            self._known[block] = 0
            self._evict(block)
        self._owners[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more owner of a block that is owned or cached; from now on nobody may write to it."""
        if self._owners[block] == 0:
            del self._cached[block]
        self._owners[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less for each; NO_BLOCK entries are skipped. Give a sequence's blocks last first: what is released
        first is evicted first, and the end of a prompt is of less use to others than its beginning."""
        owners = self._owners
        for block in blocks:
            if block == NO_BLOCK:
                continue
            owners[block] -= 1
            if owners[block] == 0:
                if self._known[block]:
                    self._cached[block] = None
                else:
                    self._free.append(block)
            assert owners[block] >= 0, f"block {block} released without an owner"

    def know(self, block: int) -> None:
        """The prefix cache knows the content of this owned block: it is kept when its last owner leaves."""
        self._known[block] = 1

    def forget(self, block: int) -> None:
        """The identity of a block ends; if nobody owns it, it is free."""
        self._known[block] = 0
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def check(self) -> None:
        """Raise AssertionError if the three kinds do not make up the whole. For tests and debug builds."""
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is twice in the free list"
        assert not free & cached, "a block is free and cached"
        for block in range(self.total):
            unowned = block in free or block in cached
            assert (self._owners[block] == 0) == unowned, (
                f"block {block}: {self._owners[block]} owners, unowned {unowned}"
            )
            assert block not in free or not self._known[block], f"free block {block} has an identity"
            assert block not in cached or self._known[block], f"cached block {block} has no identity"
