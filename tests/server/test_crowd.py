"""What is known of a full queue, and when it is asked for again."""

from __future__ import annotations

import pytest

from octavo.errors import QueueFull
from octavo.server.crowd import KNOWN_SECONDS, Crowd, KnownFull


class World:
    """Open requests and a clock."""

    def __init__(self) -> None:
        self.open, self.now = 32, 0.0
        self.crowd = Crowd(lambda: self.open, lambda: self.now)

    def asks(self, tenant: str) -> bool:
        """Whether the engine is asked."""
        try:
            self.crowd.check(tenant)
        except KnownFull as error:
            assert error.status == 429 and error.retry_after == 7.0 and error.code == "queue_full"
            return False
        return True


@pytest.fixture
def world() -> World:
    made = World()
    made.crowd.refused("a", QueueFull("full", retry_after=7.0))
    return made


def test_what_was_refused_is_refused_again(world: World) -> None:
    assert not world.asks("a") and not world.asks("a")
    assert world.asks("b"), "another tenant may have places left"


def test_somebody_has_left(world: World) -> None:
    world.open -= 1
    assert world.asks("a")
    world.open += 1
    assert world.asks("a"), "whoever came then was taken; who is refused says so"


def test_it_is_asked_again_after_a_while(world: World) -> None:
    world.now = KNOWN_SECONDS / 2
    world.crowd.refused("a", KnownFull("full", retry_after=7.0))  # which is no news of the engine
    assert not world.asks("a")
    world.now = KNOWN_SECONDS
    assert world.asks("a")


def test_other_refusals_say_nothing_of_the_queue() -> None:
    world = World()
    world.crowd.refused("a", QueueFull("grammars", retry_after=7.0, code="grammars_busy"))
    assert world.asks("a")
