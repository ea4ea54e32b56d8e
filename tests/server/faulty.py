"""A test build of `octavo serve`: python -m tests.server.faulty '{"faults": {...}, "poison": 666}' serve MODEL ...

faults: plans of engine/faults.py for the first engine. poison: a request with this seed kills its engine by a signal,
in the step that would give its `after`-th token.

With the option `bells` of the factory `set_up` a request of one token with the seed BELL + n rings for an exception in
the n-th step from its own on; it is over by then, so that the next engine does not hear of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.engine.core import EngineSetup, StepRunner
from octavo.engine.faults import InjectedFault
from octavo.execution.step import Step, StepResult

BELL = 1 << 40


class FailingRunner:
    """The real runner, until the step that a bell has rung for."""

    def __init__(self, runner: StepRunner) -> None:
        self.facts = runner.facts
        self._runner = runner
        self._left = 0  # steps to the exception, that one included; 0: none is due

    def run(self, step: Step) -> StepResult:
        for opened in step.opens:
            if opened.seed >= BELL:
                self._left = opened.seed - BELL
        if self._left:
            self._left -= 1
            if not self._left:
                raise InjectedFault("a bell")
        return self._runner.run(step)


class PoisonedRunner:
    """The real runner, until the step in which the request with this seed has given `after` tokens."""

    def __init__(self, runner: StepRunner, seed: int, after: int) -> None:
        self.facts = runner.facts
        self._runner = runner
        self._seed, self._after = seed, after
        self._lengths: dict[int, int] = {}  # slot -> prompt length of a request with the seed

    def run(self, step: Step) -> StepResult:
        for slot in step.closes:
            self._lengths.pop(slot, None)
        for opened in step.opens:
            if opened.seed == self._seed:
                self._lengths[opened.slot] = opened.prompt_len
        for run in step.runs:
            last = run.start + run.count + step.loop - 1  # ids that are known when the step's last row is sampled
            if run.sample and run.slot in self._lengths and last - self._lengths[run.slot] >= self._after:
                os.kill(os.getpid(), signal.SIGSEGV)
        return self._runner.run(step)


def set_up(options: Mapping[str, Any]) -> EngineSetup:
    """The real engine with these runners. run_ahead: most decode steps in a native call."""
    from octavo.engine.startup import set_up_from

    made = set_up_from(options)
    if "run_ahead" in options:
        made = replace(made, scheduler=replace(made.scheduler, run_ahead=options["run_ahead"]))
    if options.get("bells"):
        made = replace(made, runner=FailingRunner(made.runner))
    if "poison" in options:
        made = replace(made, runner=PoisonedRunner(made.runner, options["poison"], options["after"]))
    return made


def main() -> None:
    from octavo import start
    from octavo.cli.main import main as command_line

    spec, plain = json.loads(sys.argv[1]), start.engine_process

    def faulty(*given: Any) -> Any:
        made = plain(*given)
        if "poison" in spec:
            options = {**made.options, "poison": spec["poison"], "after": spec.get("after", 0)}
            made = replace(made, factory="tests.server.faulty:set_up", options=options)
        return replace(made, faults=spec.get("faults", {}))

    start.engine_process = faulty
    sys.argv[1:] = sys.argv[2:]
    command_line()


if __name__ == "__main__":
    main()
