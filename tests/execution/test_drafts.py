"""Runs with drafted ids on the native executor: what comes back is what plain decoding gives, however good the guesses.

Drafts are cut from the truth and spoiled at random places. Steps are made by hand; the engine's side is
tests/engine/test_speculation.py.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.flight_record import STOP
from octavo.execution.step import PagesAppended, RowRun, RunResult, SlotOpen, Step
from octavo.sampling_params import SamplingParams
from tests import tiny
from tests.execution.test_native import PAGES, PROMPTS, VARIANTS, Answer, Session

LENGTH = 24  # ids of an answer
PARAMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"temperature": 0.0, "frequency_penalty": 1.5, "min_tokens": 12, "logit_bias": {2: 50.0, 7: 1.0}},
    {"temperature": 1.1, "top_k": 20, "min_p": 0.02, "bad_words": ("x",)},
)
STOPS = (2,)


class Decoding:
    """The three prompts in slots of their own, answered step by step; a slot that ended takes part no more."""

    def __init__(self, session: Session, params: dict[str, Any]) -> None:
        self.session = session
        self.answers: list[Answer] = [([], []) for _ in PROMPTS]
        opens, pages = [], []
        for slot, ids in enumerate(PROMPTS):
            made = SamplingParams(max_tokens=LENGTH, logprobs=3, **params)
            words = ((5, 6), (9,)) if made.bad_words else ()
            opens.append(
                SlotOpen(slot, tuple(ids), len(ids), made, 7 + slot, slot % 2, len(ids) + LENGTH, STOPS, words)
            )
            pages.append(PagesAppended(slot, 0, 0, tuple(range(1 + slot * PAGES, 1 + (slot + 1) * PAGES))))
        zero = tuple(page for each in pages for page in each.pages)
        runs = tuple(RowRun(slot, 0, len(ids), True) for slot, ids in enumerate(PROMPTS))
        self._take(Step(0, runs, tuple(opens), (), tuple(pages), zero))

    def _take(self, step: Step) -> tuple[RunResult, ...]:
        result = self.session.runner.run(step)
        assert not result.aborted
        assert result.stats.draft_rows == sum(len(run.draft) for run in step.runs)
        assert result.stats.accepted == sum(max(0, len(each.token_ids) - 1) for each in result.runs)
        for each in result.runs:
            self.answers[each.slot][0].extend(each.token_ids)
            self.answers[each.slot][1].extend(each.logprobs or [])
        return result.runs

    def ended(self, slot: int) -> bool:
        ids = self.answers[slot][0]
        return len(ids) >= LENGTH or ids[-1] in STOPS

    def finish(self, truth: list[Answer] | None = None, chance: random.Random | None = None, good: float = 0.5) -> None:
        """Decode to the ends; with `truth` from drafts, each id of which is right with probability `good`."""
        while alive := [slot for slot in range(len(PROMPTS)) if not self.ended(slot)]:
            runs, drafts = [], {}
            for slot in alive:
                made = len(self.answers[slot][0])
                draft: tuple[int, ...] = ()
                if truth is not None and chance is not None:
                    right = truth[slot][0][made : made + chance.randrange(6)]
                    spoiled = [i if chance.random() < good else chance.randrange(tiny.VOCAB_SIZE) for i in right]
                    draft = tuple(spoiled)[: LENGTH - made - 1]
                drafts[slot] = draft
                runs.append(RowRun(slot, len(PROMPTS[slot]) + made - 1, 1 + len(draft), True, None, draft))
            for each in self._take(Step(0, tuple(runs))):
                found, draft = each.token_ids, drafts[each.slot]
                same = next((i for i, (a, b) in enumerate(zip(draft, found, strict=False)) if a != b), len(draft))
                assert 1 <= len(found) <= 1 + same
        self.session.runner.run(Step(0, closes=tuple(range(len(PROMPTS)))))


def decoded(session: Session, params: dict[str, Any], *how: Any) -> list[Answer]:
    made = Decoding(session, params)
    made.finish(*how)
    return made.answers


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.gguf_file(tmp_path_factory.mktemp("drafts") / "tiny.gguf")


@pytest.fixture(scope="module", params=VARIANTS)
def session(request: pytest.FixtureRequest, path: Path) -> Session:
    return Session(path, request.param)


@pytest.mark.parametrize("params", PARAMS)
def test_drafts_change_no_bit(session: Session, params: dict[str, Any]) -> None:
    truth = decoded(session, params)

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 2**32), st.sampled_from((0.0, 0.5, 0.9, 1.0)))
    def check(seed: int, good: float) -> None:
        assert decoded(session, params, truth, random.Random(seed), good) == truth

    check()


def test_a_stopped_step_with_drafts_commits_nothing(session: Session) -> None:
    truth = decoded(session, PARAMS[2])
    made = Decoding(session, PARAMS[2])
    wrong = tuple((i + 1) % tiny.VOCAB_SIZE for i in truth[1][0][1:5])
    run = RowRun(1, len(PROMPTS[1]), 5, True, None, wrong)
    session.control[STOP // 8] = 1
    assert session.runner.run(Step(0, (run,))).aborted
    session.control[STOP // 8] = 0
    made.finish()
    assert made.answers == truth


def test_a_draft_that_breaks_a_row_spoils_the_run_alone(tmp_path: Path) -> None:
    """An id whose embedding is infinite, as a draft: the run gives nothing and says why, the others go on."""
    session = Session(tiny.gguf_file(tmp_path / "floats.gguf", quantization={}))
    truth = decoded(session, PARAMS[0])
    made = Decoding(session, PARAMS[0])
    used = {i for ids, _ in truth for i in ids}.union(*PROMPTS)
    evil = next(i for i in range(tiny.VOCAB_SIZE) if i not in used)
    place = next(at for name, at in session.plan.layouts.places.items() if "embed" in name or "token" in name)
    table = session.executor.region("weights")[place.offset : place.offset + place.nbytes].view(np.float32)
    width = table.size // tiny.VOCAB_SIZE  # panels of 32 columns, each [width][32]
    table[evil // 32 * 32 * width + evil % 32] = np.inf
    runs = (RowRun(1, len(PROMPTS[1]), 2, True, None, (evil,)), RowRun(2, len(PROMPTS[2]), 1, True))
    spoiled, other = made._take(Step(0, runs))
    assert spoiled.broken and not spoiled.nonfinite and not spoiled.token_ids
    assert not other.broken and other.token_ids == truth[2][0][1:2]
