"""Blocks of sequences in every cache group: full ones keep all keys, sliding ones the last `window`.

Says which blocks a sequence needs, which it has lost out of its window, and how long a prefix hit is valid in all
groups at once; hands blocks out, shares them, tells the prefix cache of full ones. It writes what the executor must do
(pages to append, zero, copy) into the Draft of the step. It does not know who runs, or when.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from octavo.engine.block_pool import NO_BLOCK, BlockPool
from octavo.engine.prefix_cache import ABSENT, PrefixCache, PrefixNode
from octavo.engine.sequence import NO_SLOT, Sequence
from octavo.execution.step import PAGE_TOKENS, ExecutionFacts, PagesAppended, RowRun, SlotOpen


@dataclass(slots=True)
class Draft:
    """The step under construction; `members` and `runs` go together."""

    members: list[Sequence] = field(default_factory=list)
    runs: list[RowRun] = field(default_factory=list)
    opens: list[SlotOpen] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    pages: list[PagesAppended] = field(default_factory=list)
    zero_pages: list[int] = field(default_factory=list)
    copy_pages: list[tuple[int, int]] = field(default_factory=list)
    forked: list[Sequence] = field(default_factory=list)  # whose first blocks are copies made in this step


def page_operations(facts: ExecutionFacts, block_tokens: int) -> int:
    """Bound of zero_pages (and of copy_pages) of a step: every row on a new page, one broken block a sequence more at
    either end, in every group."""
    pages_per_block = block_tokens // PAGE_TOKENS
    rows = -(-facts.max_rows // PAGE_TOKENS)
    return len(facts.groups) * (rows + 2 * facts.max_seqs * pages_per_block)


class CacheGroups:
    """The paged groups of a model over one pool of equal pages."""

    def __init__(self, facts: ExecutionFacts, block_tokens: int, secret: bytes, caching: bool) -> None:
        self.block_tokens = block_tokens
        self.windows = [group.window for group in facts.groups]
        self.caching = caching
        self.pool = BlockPool(facts.pages, block_tokens, self._evicted)
        self.prefixes = PrefixCache(secret, facts.fingerprint, facts.groups, block_tokens, self.pool.total)
        self._max_pages = -(-facts.max_model_len // PAGE_TOKENS)
        self._max_rows = facts.max_rows

    def _evicted(self, block: int) -> None:
        self.prefixes.detach(block)

    # What a sequence needs

    def first_needed(self, group: int, position: int) -> int:
        """First block that the row at `position` (and any later one) sees."""
        window = self.windows[group]
        return max(0, position - window + 1) // self.block_tokens if window else 0

    def blocks_needed(self, tokens: int) -> int:
        """Blocks held at most at once while `tokens` positions are computed from none, over all groups. A sliding group
        holds its window, the chunk being computed, and a broken block at either end."""
        total = 0
        for window in self.windows:
            live = min(tokens, window + self._max_rows) if window else tokens
            broken = 1 if window and live < tokens else 0
            total += -(-live // self.block_tokens) + broken
        return total

    def capacity_tokens(self, max_model_len: int) -> int:
        """The longest sequence that fits alone, at most `max_model_len`."""
        low, high = 0, max_model_len
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_needed(middle) <= self.pool.total else (low, middle - 1)
        return low

    # Prefix hits

    def match(self, sequence: Sequence) -> list[PrefixNode]:
        """Nodes of the longest prefix that is valid in every group, within the sequence's hit limit."""
        if not self.caching:
            return []
        ids, tokens = sequence.ids, self.block_tokens
        found: list[PrefixNode] = []
        node = self.prefixes.find_root(self._key(sequence, 0))
        if node is None:
            return found
        for i in range(sequence.hit_limit // tokens):
            child = self.prefixes.child(node, self._key(sequence, i + 1), tuple(ids[i * tokens : (i + 1) * tokens]))
            if child is None:
                break
            found.append(child)
            node = child
        return found[: self._valid_length(found)]

    def _valid_length(self, nodes: Seq[PrefixNode]) -> int:
        """How many of `nodes` make a hit: for each group the blocks that the next row sees must all be there."""
        runs: list[list[int]] = []  # per group: blocks present without a gap up to and including node i
        for group in range(len(self.windows)):
            run, lengths = 0, [0]
            for node in nodes:
                run = run + 1 if node.blocks[group] != ABSENT else 0
                lengths.append(run)
            runs.append(lengths)
        for count in range(len(nodes), 0, -1):
            position = count * self.block_tokens
            if all(run[count] >= count - self.first_needed(group, position) for group, run in enumerate(runs)):
                return count
        return 0

    def unowned_hits(self, nodes: Seq[PrefixNode]) -> tuple[int, int]:
        """(blocks that a hit on `nodes` would share, those among them that nobody owns now)."""
        position = len(nodes) * self.block_tokens
        shared = unowned = 0
        for group in range(len(self.windows)):
            for node in nodes[self.first_needed(group, position) :]:
                shared += 1
                unowned += self.pool.owners(node.blocks[group]) == 0
        return shared, unowned

    def take_hit(self, sequence: Sequence, nodes: Seq[PrefixNode]) -> None:
        """Give a sequence without blocks the shared ones of `nodes`; its KV exists up to their end."""
        position = len(nodes) * self.block_tokens
        for group in range(len(self.windows)):
            first = self.first_needed(group, position)
            held = [NO_BLOCK] * first + [node.blocks[group] for node in nodes[first:]]
            for block in held[first:]:
                self.pool.share(block)
            sequence.blocks[group], sequence.first_block[group] = held, first
        sequence.computed = position
        sequence.hashed = len(nodes)
        if self.caching:
            tail = nodes[-1] if nodes else self.prefixes.root(self._key(sequence, 0))
            self._follow(sequence, tail)

    def _follow(self, sequence: Sequence, tail: PrefixNode) -> None:
        self.prefixes.pin(tail)
        if sequence.tail is not None and sequence.generation == self.prefixes.generation:
            self.prefixes.unpin(sequence.tail)
        sequence.tail, sequence.generation = tail, self.prefixes.generation

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """Chained key of the prefix of `index` blocks; kept with the sequence."""
        keys, tokens = sequence.keys, self.block_tokens
        if not keys:
            keys.append(self.prefixes.root_key(sequence.live.request.salt))
        while len(keys) <= index:
            start = (len(keys) - 1) * tokens
            keys.append(self.prefixes.chain_key(keys[-1], sequence.ids[start : start + tokens]))
        return keys[index]

    # Growing, forking, committing, releasing

    def shortage(self, sequence: Sequence, end: int) -> int:
        """Blocks that are missing for positions below `end`."""
        if end <= sequence.room:
            return 0
        blocks = -(-end // self.block_tokens)
        return sum(max(0, blocks - len(held)) for held in sequence.blocks)

    def grow(self, sequence: Sequence, end: int, draft: Draft) -> bool:
        """Blocks for positions below `end`, or False and nothing changed."""
        if end <= sequence.room:
            return True
        blocks = -(-end // self.block_tokens)
        missing = 0
        for held in sequence.blocks:
            if len(held) < blocks:
                missing += blocks - len(held)
        if missing > self.pool.available:
            return False
        sequence.room = blocks * self.block_tokens
        if missing == 0:
            return True
        for group, held in enumerate(sequence.blocks):
            first = len(held)
            while len(held) < blocks:
                held.append(self.pool.allocate())
            self._append(sequence, group, first, draft, zero=True)
        return True

    def append_all(self, sequence: Sequence, draft: Draft) -> None:
        """Tell the executor of every block that the sequence holds: it has just been given a slot."""
        for group, first in enumerate(sequence.first_block):
            self._append(sequence, group, first, draft, zero=False)

    def _append(self, sequence: Sequence, group: int, first: int, draft: Draft, *, zero: bool) -> None:
        pages = [page for block in sequence.blocks[group][first:] for page in self.pool.pages(block)]
        first_page = first * self.pool.pages_per_block
        pages = pages[: self._max_pages - first_page]  # the last block may reach beyond the context
        if pages:
            draft.pages.append(PagesAppended(sequence.slot, group, first_page, tuple(pages)))
            if zero:
                draft.zero_pages.extend(pages)

    def can_fork(self, source: Sequence, sequence: Sequence) -> bool:
        """Whether `source` still holds all that the row of the last prompt id sees."""
        last = sequence.prompt_len - 1
        if source.slot == NO_SLOT or source.computed < last:
            return False
        return all(source.first_block[group] <= self.first_needed(group, last) for group in range(len(self.windows)))

    def fork(self, source: Sequence, sequence: Sequence, draft: Draft) -> None:
        """Share the prompt's whole blocks with `source`, copy the pages of the block that holds the last prompt id.
        The KV before that id then exists for `sequence`. The caller has looked at can_fork, and at the pool."""
        last = sequence.prompt_len - 1
        whole, rest = divmod(last, self.block_tokens)
        for group in range(len(self.windows)):
            first = self.first_needed(group, last)
            held = [NO_BLOCK] * first + source.blocks[group][first:whole]
            for block in held[first:]:
                self.pool.share(block)
            sequence.blocks[group], sequence.first_block[group] = held, first
            if rest:
                copy = self.pool.allocate()
                held.append(copy)
                used = -(-rest // PAGE_TOKENS)  # pages that hold ids before the last one
                pages = self.pool.pages(copy)
                draft.zero_pages.extend(pages[: self._max_pages - whole * self.pool.pages_per_block])
                draft.copy_pages.extend(
                    zip(self.pool.pages(source.blocks[group][whole])[:used], pages[:used], strict=True)
                )
        sequence.computed = last
        if self.caching and source.tail is not None and source.generation == self.prefixes.generation:
            self._follow_prompt(source, sequence, whole)

    def _follow_prompt(self, source: Sequence, sequence: Sequence, whole: int) -> None:
        """The chain of the prompt's whole blocks is the source's, if it was hashed that far."""
        if source.hashed < whole:
            return
        node = source.tail
        for _ in range(source.hashed - whole):
            assert node is not None
            node = node.parent
        if node is not None:
            self._follow(sequence, node)
            sequence.hashed = whole

    def commit(self, sequence: Sequence) -> None:
        """After a step: the prefix cache learns of blocks that became full, blocks out of every window are released."""
        if self.caching and sequence.tail is not None and sequence.generation == self.prefixes.generation:
            self._hash(sequence)
        for group, window in enumerate(self.windows):
            if window:
                first, held = sequence.first_block[group], sequence.blocks[group]
                end = min(self.first_needed(group, sequence.computed), len(held))
                if end > first:
                    self.pool.release(held[first:end])
                    held[first:end] = [NO_BLOCK] * (end - first)
                    sequence.first_block[group] = end

    def _hash(self, sequence: Sequence) -> None:
        tokens = self.block_tokens
        while sequence.hashed < sequence.computed // tokens:
            i = sequence.hashed
            key = self._key(sequence, i + 1)
            assert sequence.tail is not None
            node = self.prefixes.extend(sequence.tail, key, tuple(sequence.ids[i * tokens : (i + 1) * tokens]))
            if node is None:  # the key belongs to another prefix: this one is not cached from here on
                self._unfollow(sequence)
                return
            for group, held in enumerate(sequence.blocks):
                if held[i] != NO_BLOCK and self.prefixes.attach(node, group, held[i]):
                    self.pool.know(held[i])
            self._follow(sequence, node)
            sequence.hashed += 1

    def _unfollow(self, sequence: Sequence) -> None:
        if sequence.tail is not None and sequence.generation == self.prefixes.generation:
            self.prefixes.unpin(sequence.tail)
        sequence.tail, sequence.generation = None, -1

    def disown(self, sequence: Sequence) -> None:
        """The sequence met a non-finite logit: what it wrote is not to be found by others."""
        for block in sequence.owned():
            if self.pool.owners(block) == 1:  # a block that another one reads was good enough for it, or fails there
                self.prefixes.detach(block)
                self.pool.forget(block)

    def release(self, sequence: Sequence) -> None:
        """All blocks back, last first; KV exists for no position any more."""
        self._unfollow(sequence)
        for group, held in enumerate(sequence.blocks):
            self.pool.release(held[: sequence.first_block[group] - 1 if sequence.first_block[group] else None : -1])
            sequence.blocks[group] = []
            sequence.first_block[group] = 0
        sequence.computed = 0
        sequence.room = 0
        sequence.hashed = 0

    def reset(self) -> None:
        """Forget every prefix."""
        for block in self.prefixes.known_blocks():
            self.pool.forget(block)
        self.prefixes.reset()
