"""Texts -> vectors and scores: the front of a model that gives embeddings or ranks, for all dialects and for `LLM`.

Tokenize, ask the engine, normalize, cut, compare. It knows no HTTP and no kernel, and generates nothing.
"""

from __future__ import annotations

import asyncio
import copy
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoints.pooling import Pooling
from octavo.checkpoints.sentence_modules import Dense, read_dense
from octavo.engine.client import EngineClient
from octavo.errors import ContextLengthExceeded, InvalidRequest, OctavoError
from octavo.request import Request, Terms
from octavo.sampling_params import SamplingParams
from octavo.tokenizer.tokenizer import LONG_TEXT, Tokenizer

T = TypeVar("T")
R = TypeVar("R")
Floats = NDArray[np.float32]
Text = str | Sequence[int]  # a text, or its ids with whatever stands around them
AT_ONCE = 256  # inputs of one call that the engine is told of at a time: others wait no longer for it than for these
LIMIT = -1  # of truncation: what the model can take


@dataclass(frozen=True)
class Embedding:
    """vector [dimensions] float32; tokens: of the input, after truncation."""

    vector: Floats
    tokens: int


@dataclass(frozen=True)
class Score:
    """value: larger is nearer; of a classifier of one label its sigmoid, unless its authors want it as it is."""

    value: float
    tokens: int


@dataclass(frozen=True)
class Labels:
    """Of one input: the probability of each label; of one label alone its sigmoid."""

    probabilities: list[float]
    tokens: int


class Vectors:
    """Embeddings and scores of one model. Every call raises InvalidRequest and ContextLengthExceeded before it asks."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer, pooling: Pooling) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self.pooling = pooling
        self._terms = Terms()
        self._dense: list[Dense] = []
        for folder in pooling.dense:
            self._dense.append(read_dense(folder, self.width))

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return len(self._dense[-1].weight) if self._dense else self._client.info.vector

    def under(self, terms: Terms) -> Vectors:
        """The same on other terms."""
        made = copy.copy(self)
        made._terms = terms
        return made

    async def embed(
        self, texts: Sequence[Text], *, dimensions: int | None = None, normalize: bool | None = None,
        truncate: int | None = None,
    ) -> list[Embedding]:  # fmt: skip
        """The vectors of texts, in their order.

        dimensions: the first so many numbers, made to length 1 again. normalize: None as the model has it. truncate:
        tokens that are kept of an input, special ones at its end included; LIMIT: what the model can take.
        """
        if self.pooling.labels:
            raise InvalidRequest("this model scores pairs of texts; it gives no embeddings: use /rerank or /score.")
        width = self.width
        if dimensions is not None and not 1 <= dimensions <= width:
            raise InvalidRequest(f"dimensions is {dimensions}; this model gives 1 to {width}.", param="dimensions")
        unit = self.pooling.normalize if normalize is None else normalize
        prompts = [await self._ids(text, truncate) for text in texts]

        async def one(ids: tuple[int, ...]) -> Embedding:
            vector = projected(await self._vector(ids), self._dense)
            if dimensions is not None and dimensions < width:
                return Embedding(_unit(vector[:dimensions]), len(ids))
            return Embedding(_unit(vector) if unit else vector, len(ids))

        return await _each(one, prompts)

    async def score(self, query: str, documents: Sequence[str], *, truncate: int | None = None) -> list[Score]:
        """How near each document is to the query: a classifier's score of the pair, how probable it is that a decoder
        says yes rather than no, or the cosine of two embeddings."""
        if not self.pooling.labels:
            first, *rest = await self.embed([query, *documents], normalize=True, truncate=truncate)
            return [Score(float(first.vector @ each.vector), first.tokens + each.tokens) for each in rest]
        if self.pooling.judge:
            return await _each(self._judged, [self._question(query, document, truncate) for document in documents])
        if self.pooling.labels > 1:
            raise InvalidRequest(f"this model gives {self.pooling.labels} labels, which are no score: use /classify.")
        pairs = [self._pair(query, document, truncate) for document in documents]

        async def one(pair: tuple[tuple[int, ...], int | None]) -> Score:
            ids, second = pair
            value = float((await self._vector(ids, second))[0])
            return Score(1 / (1 + math.exp(-value)) if self.pooling.sigmoid else value, len(ids))

        return await _each(one, pairs)

    async def classify(self, texts: Sequence[Text], *, truncate: int | None = None) -> list[Labels]:
        """The labels of texts, by the model's classification head."""
        if not self.pooling.labels:
            raise InvalidRequest("this model gives embeddings; it has no labels: use /v1/embeddings.")
        prompts = [await self._ids(text, truncate) for text in texts]

        async def one(ids: tuple[int, ...]) -> Labels:
            scores = (await self._vector(ids)).astype(np.float64)
            if len(scores) == 1:
                return Labels([1 / (1 + math.exp(-float(scores[0])))], len(ids))
            powers = np.exp(scores - scores.max())
            return Labels((powers / powers.sum()).tolist(), len(ids))

        return await _each(one, prompts)

    async def _judged(self, ids: tuple[int, ...]) -> Score:
        yes, no = (float(each) for each in await self._vector(ids))
        return Score(1 / (1 + math.exp(min(no - yes, 700.0))), len(ids))

    def _question(self, query: str, document: str, truncate: int | None) -> tuple[int, ...]:
        """Ids of the model's prompt about a pair. Special tokens are those of the prompt: their names inside the texts
        are text. A truncation takes from the document's end."""
        judge, encode = self.pooling.judge, self._tokenizer.encode
        begin = judge.rfind("|>", 0, judge.index("{query}")) + 2 if "|>" in judge[: judge.index("{query}")] else 0
        end = judge.find("<|", judge.index("{document}"))
        end = len(judge) if end < 0 else end
        head, tail = encode(judge[:begin]), encode(judge[end:])
        before, _, rest = judge[begin:end].partition("{query}")
        between, _, after = rest.partition("{document}")
        body = encode(before + query + between + document + after, special=False)
        if truncate is not None:
            most = self._limit(truncate)
            if most < len(head) + len(tail) + 1:
                raise InvalidRequest(
                    f"truncate_prompt_tokens is {truncate}; the prompt around the texts takes {len(head) + len(tail)}.",
                    param="truncate_prompt_tokens",
                )
            body = body[: most - len(head) - len(tail)]
        return self._fitted([*head, *body, *tail], None)

    async def _vector(self, ids: tuple[int, ...], second: int | None = None) -> Floats:
        """What the engine gives for ids."""
        request = Request(
            f"vec-{secrets.token_hex(12)}", ids, SamplingParams(temperature=0, max_tokens=1), 0, second=second,
            **vars(self._terms),
        )  # fmt: skip
        async for outputs in self._client.submit(request, patient=True):  # others of the call may have been answered
            for output in outputs:
                if output.error or output.vector is None:
                    raise OctavoError(output.error or "The engine gave no vector for this input.")
                return np.frombuffer(output.vector, "<f4").astype(np.float32)
        raise OctavoError("The engine ended this request without a vector.")

    async def _ids(self, text: Text, truncate: int | None) -> tuple[int, ...]:
        if not isinstance(text, str):
            size = self._client.info.vocab_size
            if min(text, default=0) < 0 or max(text, default=0) >= size:
                raise InvalidRequest(f"input has an id outside of 0 to {size - 1}.", param="input")
            return self._fitted(list(text), truncate)
        if len(text) <= LONG_TEXT:
            return self._fitted(self._tokenizer.encode(text, True), truncate)
        return self._fitted(await asyncio.to_thread(self._tokenizer.encode, text, True), truncate)

    def _pair(self, query: str, document: str, truncate: int | None) -> tuple[tuple[int, ...], int | None]:
        """Ids of both, and where the second begins if the model tells them apart."""
        ids, parts = self._tokenizer.encode_pair(query, document)
        return self._fitted(ids, truncate), parts.index(1) if self.pooling.parts and 1 in parts else None

    def _fitted(self, ids: list[int], truncate: int | None) -> tuple[int, ...]:
        """Ids that the model can take; special ones at the end survive a truncation, as in sentence-transformers."""
        limit = self._client.info.longest_prompt
        if truncate is not None:
            most = self._limit(truncate)
            if len(ids) > most:
                tail = next((n for n, id_ in enumerate(reversed(ids)) if not self._tokenizer.is_special(id_)), 0)
                tail = min(tail, most - 1)
                ids = ids[: most - tail] + ids[len(ids) - tail :]
        if not ids:
            raise InvalidRequest("input is empty: it must have at least one token.", param="input")
        if len(ids) > limit:
            raise ContextLengthExceeded(limit, len(ids), param="input")
        return tuple(ids)

    def _limit(self, truncate: int) -> int:
        """Tokens that a truncation leaves."""
        limit = self._client.info.longest_prompt
        most = limit if truncate == LIMIT else truncate
        if not 1 <= most <= limit:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {truncate}; -1, or 1 to {limit}.", param="truncate_prompt_tokens"
            )
        return most


def projected(vector: Floats, layers: Sequence[Dense]) -> Floats:
    """The vector after sentence-transformers' Dense layers. Sums are einsum's: they depend on no batch and no number of
    threads, as those of a BLAS may."""
    for layer in layers:
        vector = np.einsum("oi,i->o", layer.weight, vector)
        if layer.bias is not None:
            vector = vector + layer.bias
        if layer.activation == "Tanh":
            vector = np.tanh(vector)
        elif layer.activation == "ReLU":
            vector = np.maximum(vector, np.float32(0))
    return vector


def _unit(vector: Floats) -> Floats:
    """The vector at length 1; one of zeros stays."""
    length = float(np.sqrt((vector.astype(np.float64) ** 2).sum()))
    return (vector / max(length, 1e-12)).astype(np.float32)


async def _each(function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """All of them, AT_ONCE at a time; the first error ends the others."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> R:
        async with room:
            return await function(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
