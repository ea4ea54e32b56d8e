"""Responses that may be asked for again: kept in memory, bounded by number and size, the oldest go first.

Ids cannot be guessed. A restart forgets them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from octavo.errors import InvalidRequest, NotFound
from octavo.server.tenants import Tenant

MAX_RESPONSES = 4096
MAX_BYTES = 64 << 20  # of what they hold, as JSON


@dataclass
class Kept:
    """response: its body as it stands. items: what this request brought. conversation: all items up to its answer,
    those of earlier responses included. running: the task of one that is made in the background. owner: the name of the
    tenant who alone sees it."""

    response: dict[str, Any]
    items: list[dict[str, Any]]
    conversation: list[dict[str, Any]]
    running: asyncio.Task[None] | None = None
    owner: str = ""
    nbytes: int = field(default=0)


class ResponseStore:
    """id -> Kept."""

    def __init__(self, most: int = MAX_RESPONSES, nbytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._most = most
        self._nbytes = nbytes
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, kept: Kept) -> None:
        """Add it, or measure it again; older ones go as far as there is no room."""
        id_ = kept.response["id"]
        self._drop(id_)
        kept.nbytes = len(msgspec.json.encode((kept.response, kept.items, kept.conversation)))
        self._kept[id_] = kept
        self.nbytes += kept.nbytes
        while len(self._kept) > self._most or (self.nbytes > self._nbytes and len(self._kept) > 1):
            self._drop(next(iter(self._kept)))

    def get(self, id_: str, tenant: Tenant) -> Kept:
        """Raises NotFound."""
        kept = self._kept.get(id_)
        if kept is None or not tenant.sees(kept.owner):
            raise NotFound(f"Response with id '{id_[:100]}' not found.", code="response_not_found")
        return kept

    def before(self, id_: str, tenant: Tenant) -> Kept:
        """The response that another one goes on from. Raises InvalidRequest."""
        kept = self._kept.get(id_)
        if kept is None or not tenant.sees(kept.owner):
            raise InvalidRequest(
                f"Previous response with id '{id_[:100]}' not found.", param="previous_response_id",
                code="previous_response_not_found",
            )  # fmt: skip
        return kept

    def delete(self, id_: str, tenant: Tenant) -> None:
        """Raises NotFound. One that is being made is ended."""
        kept = self.get(id_, tenant)
        if kept.running is not None:
            kept.running.cancel()
        self._drop(id_)

    def has(self, id_: str) -> bool:
        return id_ in self._kept

    def _drop(self, id_: str) -> None:
        kept = self._kept.pop(id_, None)
        if kept is not None:
            self.nbytes -= kept.nbytes
