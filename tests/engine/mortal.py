"""Engines that die: in this thread, at a step that the test names or in which a poisonous request has a row, so that
hundreds of deaths take a second; and in a process of its own, by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from octavo.engine.client import EngineClient
from octavo.engine.core import EngineCore, EngineSetup
from octavo.engine.flight_record import FlightRecord
from octavo.engine.loop import EngineLoop
from octavo.engine.messages import VERSION, ChoiceOutput, EngineMessage, FrontMessage, Hello, Shutdown
from octavo.engine.open_requests import Loss
from octavo.engine.roster import SchedulerConfig
from octavo.errors import OctavoError
from octavo.execution.step import ExecutionFacts, Step, StepResult
from octavo.request import Request
from tests.engine.scripted_runner import ScriptedRunner, make_facts

EOS = (0,)


class Death(Exception):
    """The engine is over."""


class MortalRunner(ScriptedRunner):
    """`fate` is called with each step before it runs; it may raise, or end the process."""

    def __init__(self, facts: ExecutionFacts, fate: Fate) -> None:
        super().__init__(facts)
        self._fate = fate

    def run(self, step: Step) -> StepResult:
        self._fate(self, step)
        return super().run(step)

    def rows_of(self, step: Step, poison: dict[int, int]) -> list[int]:
        """Seeds of poison (seed -> known ids at which it works) whose rows that work are in the step."""
        opened = {each.slot: (each.seed, len(each.ids)) for each in step.opens}
        known = {slot: (state.opened.seed, len(state.ids)) for slot, state in self.slots.items()} | opened
        return [
            seed
            for run in step.runs
            for seed, ids in [known[run.slot]]
            if run.sample and seed in poison and poison[seed] < ids + step.loop
        ]


Fate = Callable[[MortalRunner, Step], None]


class ThreadlessLink:
    """An engine that runs when `turn` is called; client.Link on one side, loop.Port on the other."""

    def __init__(self, setup: EngineSetup, epoch: int) -> None:
        self.flight = FlightRecord(setup.runner.facts.max_seqs)
        self.core = EngineCore(setup, self.flight, epoch)
        self.loop: EngineLoop[int] = EngineLoop(self.core, self, self.flight)
        self._inbox: deque[FrontMessage] = deque()
        self._received: Callable[[EngineMessage], None] = lambda message: None

    # what the client does

    def start(self, received: Callable[[EngineMessage], None], ended: Callable[[str], None]) -> None:
        self._received = received

    def post(self, message: FrontMessage) -> None:
        if not isinstance(message, Shutdown):
            self._inbox.append(message)

    async def send(self, message: FrontMessage) -> None:
        self.post(message)

    async def close(self) -> None:
        self._received = lambda message: None

    # what the engine does

    def receive(self, timeout: float) -> Iterable[tuple[int, FrontMessage | None]]:
        came = [(0, message) for message in self._inbox]
        self._inbox.clear()
        return came

    def send_to_front(self, message: EngineMessage) -> None:
        self._received(message)

    def greet(self, message: EngineMessage) -> None:
        pass


class _Port:
    """loop.Port of a link: the two protocols have a `send` each."""

    def __init__(self, link: ThreadlessLink) -> None:
        self._link = link

    def receive(self, timeout: float) -> Iterable[tuple[int, FrontMessage | None]]:
        return self._link.receive(timeout)

    def send(self, peer: int, message: EngineMessage) -> None:
        self._link.send_to_front(message)

    def greet(self, message: EngineMessage) -> None:
        pass


@dataclass
class Answer:
    """All that a client was given for a request."""

    ids: list[list[int]]
    logprobs: list[list[object]]
    finishes: dict[int, tuple[object, object]] = field(default_factory=dict)
    prompt: object = None
    error: OctavoError | None = None

    def take(self, item: ChoiceOutput) -> None:
        choice = item.choice
        assert item.index == len(self.ids[choice]) and choice not in self.finishes
        self.ids[choice] += item.token_ids
        self.logprobs[choice] += item.logprobs or []
        if item.prompt is not None:
            assert self.prompt is None
            self.prompt = item.prompt.prompt_logprobs or ()
        if item.finish is not None:
            self.finishes[choice] = (item.finish, item.stop_id)


async def answer(client: EngineClient, request: Request) -> Answer:
    """A request's answer, to its end or its error."""
    made = Answer([[] for _ in range(request.params.n)], [[] for _ in range(request.params.n)])
    try:
        async for items in client.submit(request):
            for item in items:
                made.take(item)
    except OctavoError as error:
        made.error = error
    return made


class World:
    """A client whose engines die, and what is known of their deaths."""

    def __init__(
        self, fate: Callable[[MortalRunner, Step], None] = lambda runner, step: None, **config: object
    ) -> None:
        self.client = EngineClient()
        self.losses: list[Loss] = []
        self.link: ThreadlessLink
        self._fate = fate
        self._config = config
        self._epoch = 0
        self.arrivals: list[Request] = []  # come when the next engine has been attached
        self.tasks: list[asyncio.Task[Answer]] = []
        self._attach()

    def _attach(self) -> None:
        self._epoch += 1
        facts = make_facts(pages=400, max_model_len=400, vocab=60, max_seqs=40)
        scheduler = SchedulerConfig(secret=b"m" * 32, eos_ids=EOS, **self._config)  # type: ignore[arg-type]
        self.link = ThreadlessLink(EngineSetup(MortalRunner(facts, self._fate), scheduler, "mortal"), self._epoch)
        self.link.loop = EngineLoop(self.link.core, _Port(self.link), self.link.flight)
        self.client.attach(self.link, Hello(VERSION, self._epoch, self.link.core.info), lambda reason: None)

    async def die(self) -> None:
        """The present engine is over; the next one takes its place."""
        flight = self.link.flight.read()
        self.losses.append(await self.client.lose(flight.members if flight.step else (), flight.ahead))
        self.link.flight.close()
        self._attach()
        self.tasks += [asyncio.create_task(answer(self.client, request)) for request in self.arrivals]
        self.arrivals = []

    async def run(self, requests: list[Request], turns: int = 20_000) -> list[Answer]:
        """Answers of these requests, and of those that arrived meanwhile, in order."""
        self.tasks = [asyncio.create_task(answer(self.client, request)) for request in requests]
        for _ in range(turns):
            for _ in range(4):  # tasks that wait for tasks
                await asyncio.sleep(0)
            if all(task.done() for task in self.tasks):
                break
            try:
                self.link.loop.turn(0.0)
            except Death:
                await self.die()
        assert all(task.done() for task in self.tasks), "somebody waits for ever"
        for _ in range(3):
            self.link.loop.turn(0.0)  # aborts arrive
        stats = self.link.core.stats()
        assert stats.blocks_owned == stats.running == stats.waiting == 0 and not self.client.open_requests
        return [task.result() for task in self.tasks]


def build(options: dict[str, object]) -> EngineSetup:
    """For the supervisor. options: `delay` (seconds a step), `poison` (seed -> known ids at which it kills)."""
    delay = float(str(options.get("delay", 0.0)))
    given = options.get("poison", {})
    assert isinstance(given, dict)
    poison = {int(seed): int(ids) for seed, ids in given.items()}

    def fate(runner: MortalRunner, step: Step) -> None:
        time.sleep(delay)
        if runner.rows_of(step, poison):
            os.kill(os.getpid(), signal.SIGSEGV)

    facts = make_facts(pages=600, max_model_len=400, vocab=60, max_seqs=64)
    return EngineSetup(MortalRunner(facts, fate), SchedulerConfig(secret=b"m" * 32, eos_ids=EOS), "mortal")
