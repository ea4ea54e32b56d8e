"""A flow: what comes bit by bit and is taken without waiting.

From the engine's client up to the HTTP stream each layer is a flow over the one below. What a step of the engine brings
goes up by plain calls in one turn of the event loop: a task and six generators for each stream took 12 us a token. It
knows nothing of what flows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Flow(Protocol[T_co]):
    """Used by one event loop, started once."""

    @property
    def done(self) -> bool:
        """Everything has been taken."""

    async def start(self, news: Callable[[], None]) -> None:
        """Begin. From now on `news` is called in the event loop whenever take() may have something; it never raises."""

    def take(self) -> T_co | None:
        """What is new since the last time, None if nothing is. Raises what ended the flow before it was done."""

    def close(self) -> None:
        """Let go: what is not done is aborted. Once is enough, twice is no error."""


async def items(flow: Flow[T]) -> AsyncGenerator[T, None]:
    """What a flow gives, waited for. Leaving it early closes the flow."""
    news = asyncio.Event()
    try:
        await flow.start(news.set)
        while not flow.done:
            news.clear()
            item = flow.take()
            if item is not None:
                yield item
            elif not flow.done:
                await news.wait()
    finally:
        flow.close()


AT_ONCE = 32


async def let_others(number: int) -> None:
    """A turn of the event loop after every AT_ONCE of many flows that are begun one after the other."""
    if number % AT_ONCE == AT_ONCE - 1:
        await asyncio.sleep(0)
