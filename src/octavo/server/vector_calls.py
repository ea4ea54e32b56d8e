"""Embeddings and scores for a call: on its terms, and counted against its tenant. It makes nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from octavo.request import Usage
from octavo.server.quota import Meter
from octavo.vectors import Embedding, Labels, Score, Text, Vectors


class Counted(Protocol):
    """An Embedding, a Score, Labels."""

    @property
    def tokens(self) -> int: ...


T = TypeVar("T", bound=Counted)


class VectorCalls:
    """The calls of vectors.Vectors; those of one object are one request."""

    def __init__(self, vectors: Vectors, meter: Callable[[Callable[[], Usage]], Meter]) -> None:
        """meter: makes one of what tells how much was used."""
        self._vectors = vectors
        self._tokens = 0
        self._meter = meter(lambda: Usage(self._tokens, 0))

    async def embed(self, texts: Sequence[Text], **more: Any) -> list[Embedding]:
        """See Vectors.embed."""
        return await self._counted(lambda: self._vectors.embed(texts, **more))

    async def score(self, query: str, documents: Sequence[str], **more: Any) -> list[Score]:
        """See Vectors.score."""
        return await self._counted(lambda: self._vectors.score(query, documents, **more))

    async def classify(self, texts: Sequence[Text], **more: Any) -> list[Labels]:
        """See Vectors.classify."""
        return await self._counted(lambda: self._vectors.classify(texts, **more))

    async def _counted(self, call: Callable[[], Coroutine[Any, Any, list[T]]]) -> list[T]:
        self._meter.begin()
        try:
            found = await call()
            self._tokens += sum(each.tokens for each in found)
            return found
        finally:
            self._meter.end()
