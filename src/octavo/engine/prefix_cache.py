"""Which blocks hold the KV of which prefix: a tree of verified nodes, found through chained keyed hashes.

Keys are hashed over 16 ids at a time whatever the block size, chained over the parent, keyed with the secret of the
installation, and rooted in fingerprint, group layout, tenant salt, adapter and media digests. A hit also compares the
ids and the parent node itself, so a collision can cost a hit but never serve a foreign prefix. It knows neither
sequences nor when a block is freed; the pool tells it when one is evicted.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from octavo.execution.step import PAGE_TOKENS, PagedGroup

KEY_BYTES = 16  # 128 bits: chance collisions are out of sight, and ids are compared anyway
ABSENT = -1


class PrefixNode:
    """One block's worth of ids after `parent`. `blocks[g]`: the block of group g that holds its KV, or ABSENT.

    `references` counts children, blocks and pins of running sequences; at 0 the node leaves the tree.
    """

    __slots__ = ("key", "parent", "ids", "blocks", "references")

    def __init__(self, key: bytes, parent: PrefixNode | None, ids: tuple[int, ...], groups: int) -> None:
        self.key = key
        self.parent = parent
        self.ids = ids
        self.blocks = [ABSENT] * groups
        self.references = 0


class PrefixCache:
    """The tree of known prefixes for `groups` cache groups and blocks of `block_tokens` ids."""

    def __init__(
        self, secret: bytes, fingerprint: str, groups: Sequence[PagedGroup], block_tokens: int, total_blocks: int
    ) -> None:
        """secret: key of the hash, 16 to 64 bytes, the installation's own."""
        self._secret = secret
        self._groups = len(groups)
        self._steps = block_tokens // PAGE_TOKENS
        layout = ";".join(f"{group.index}:{group.name}:{group.window}" for group in groups)
        self._context = f"{fingerprint}\0{layout}\0".encode()
        self._nodes: dict[bytes, PrefixNode] = {}
        self._place: list[tuple[PrefixNode, int] | None] = [None] * total_blocks  # block -> node, group
        self.generation = 0  # one more after each reset: nodes of older ones are dead

    @property
    def size(self) -> int:
        """Nodes in the tree, roots included."""
        return len(self._nodes)

    def root_key(self, salt: str, adapter: bytes = b"", media: bytes = b"") -> bytes:
        """The key from which a prompt's chain starts. Lengths stand before the parts, so parts cannot run together."""
        digest = blake2b(key=self._secret, digest_size=KEY_BYTES)
        for part in (self._context, salt.encode("utf-8", "surrogatepass"), adapter, media):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()

    def chain_key(self, parent: bytes, ids: Sequence[int]) -> bytes:
        """Key of the block that holds `ids` ([block_tokens]) after the prefix with key `parent`."""
        for step in range(self._steps):
            digest = blake2b(parent, key=self._secret, digest_size=KEY_BYTES)
            digest.update(array("i", ids[step * PAGE_TOKENS : (step + 1) * PAGE_TOKENS]).tobytes())
            parent = digest.digest()
        return parent

    def find_root(self, key: bytes) -> PrefixNode | None:
        """The node before the first id, if anything after it is known."""
        node = self._nodes.get(key)
        return node if node is not None and node.parent is None else None

    def root(self, key: bytes) -> PrefixNode:
        """The node before the first id, made when it is not there; the caller pins it."""
        node = self._nodes.get(key)
        if node is None or node.parent is not None:
            # A root and an inner node with one key would be a collision of 128 bits; the newcomer stays unlisted then.
            fresh = PrefixNode(key, None, (), self._groups)
            if node is None:
                self._nodes[key] = fresh
            node = fresh
        return node

    def child(self, parent: PrefixNode, key: bytes, ids: tuple[int, ...]) -> PrefixNode | None:
        """The node of `ids` after `parent` if it is known; the parent and the ids are compared, not the key alone."""
        node = self._nodes.get(key)
        if node is None or node.parent is not parent or node.ids != ids:
            return None
        return node

    def extend(self, parent: PrefixNode, key: bytes, ids: tuple[int, ...]) -> PrefixNode | None:
        """The node of `ids` after `parent`, made when it is not there; None if its key is taken by another prefix."""
        node = self._nodes.get(key)
        if node is None:
            node = PrefixNode(key, parent, ids, self._groups)
            self._nodes[key] = node
            parent.references += 1
            return node
        return node if node.parent is parent and node.ids == ids else None

    def attach(self, node: PrefixNode, group: int, block: int) -> bool:
        """`block` holds the node's KV for `group`. False if another block does already."""
        if node.blocks[group] != ABSENT:
            return False
        node.blocks[group] = block
        node.references += 1
        self._place[block] = (node, group)
        return True

    def detach(self, block: int) -> None:
        """The block's content is no longer this node's (evicted, or found bad)."""
        place = self._place[block]
        if place is None:
            return
        node, group = place
        self._place[block] = None
        node.blocks[group] = ABSENT
        self.unpin(node)

    def pin(self, node: PrefixNode) -> None:
        """A running sequence goes on from this node: it stays in the tree, with or without blocks."""
        node.references += 1

    def unpin(self, node: PrefixNode) -> None:
        """One reference less; nodes that nothing refers to leave the tree, up to the root."""
        current: PrefixNode | None = node
        while current is not None:
            current.references -= 1
            if current.references > 0:
                return
            if self._nodes.get(current.key) is current:
                del self._nodes[current.key]
            current = current.parent

    def known_blocks(self) -> list[int]:
        """Blocks whose content is known."""
        return [block for block, place in enumerate(self._place) if place is not None]

    def reset(self) -> None:
        """Forget every prefix. Sequences that run keep their blocks and add no more of them."""
        self._nodes.clear()
        self._place = [None] * len(self._place)
        self.generation += 1
