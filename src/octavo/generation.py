"""A request under way: what the engine gives -> events, and what they say back to the engine.

It ends a choice whose text ended it, and goes on in the model's place where reasoning is over its budget. It knows no
dialect and no template.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.engine.client import EngineClient
from octavo.engine.messages import ChoiceOutput
from octavo.errors import DeadlineExceeded, GrammarFailed, OctavoError
from octavo.execution.step import TokenLogprobs
from octavo.request import FinishReason, Logprob, Request, Usage
from octavo.text.events import Event, Finished, LogprobEntry, PromptFacts
from octavo.text.output import Output
from octavo.text.parsers.splitter import Parsing
from octavo.tokenizer.detokenizer import Detokenizer
from octavo.tokenizer.tokenizer import Tokenizer


class Generation:
    """A request under way: a Flow of lists of events. Closing it early aborts the request."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        request: Request,
        prompt: PromptFacts,
        parsing: Parsing | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """parsing: how the answers are to be read; None: they are all text. patient: see EngineClient.open."""
        self._parsing = parsing
        self.request = request
        self.prompt = prompt
        if request.params.prompt_logprobs is not None and len(request.prompt_ids) == 1:
            prompt.logprobs = [None]  # the engine has none to tell of a first id
        self._tokenizer = tokenizer
        self._outputs: list[Output] = []
        self._open = set(range(request.params.n))  # choices
        self.done = False
        self.reasons: list[FinishReason] = []  # of the choices that have ended
        # Stop ids of the user's own are named as stop_reason, the model's end ids are not.
        self._asked_stop_ids = frozenset(request.params.stop_token_ids) - frozenset(tokenizer.eos_ids)
        self._stream = client.open(request, patient)

    @property
    def usage(self) -> Usage:
        tokens, reasoning = sum(o.tokens for o in self._outputs), sum(o.reasoning_tokens for o in self._outputs)
        return Usage(len(self.prompt.token_ids), tokens, self.prompt.cached_tokens, reasoning)

    @property
    def longest(self) -> int:
        return max((each.tokens for each in self._outputs), default=0)

    @property
    def seed(self) -> int:
        """The seed that repeats this answer."""
        return self.request.seed

    async def start(self, news: Callable[[], None]) -> None:
        if not self._outputs:  # else it goes on after a pause
            every = range(self.request.params.n)
            self._outputs = [new_output(self._tokenizer, self.request, choice, self._parsing) for choice in every]
        await self._stream.start(news)

    def take(self) -> list[Event] | None:
        came = self._stream.take()
        if came is None:
            return None
        events: list[Event] = []
        rewritten: set[int] = set()  # choices of which what comes behind is void
        for output in came:
            if output.error:
                kind = GrammarFailed if output.kind == GrammarFailed.__name__ else OctavoError
                raise kind(output.error)
            choice = output.choice
            if choice in self._open and choice not in rewritten:
                events += self._take(output)
                target = self._outputs[choice]
                if target.exceeded:
                    events += self._close_reasoning(choice)
                    rewritten.add(choice)
                if target.finished:
                    self._open.discard(choice)
                    last = events[-1]
                    assert isinstance(last, Finished)
                    self.reasons.append(last.reason)
                    if output.finish is None and target.stopped is not None:
                        self._stream.abort(choice, target.stopped.tokens)
        if not self._open:
            self.done = True
            self._stream.close()
        return events or None

    def close(self) -> None:
        self._stream.close()

    def pause(self) -> None:
        """See Stream.pause."""
        self._stream.pause()

    def _close_reasoning(self, choice: int) -> list[Event]:
        """Reasoning beyond its budget is ended in the model's place, and the engine goes on behind that (decision
        0018)."""
        parsing, target, most = self._parsing, self._outputs[choice], self.request.params.max_tokens
        assert parsing is not None and parsing.think is not None and most is not None
        kept = target.tokens
        ids = self._tokenizer.encode(parsing.think.closing)[: most - kept]
        certain = [{id_: Logprob(0.0, 1, self._tokenizer.token_text(id_))} for id_ in ids]
        events = target.close_reasoning(ids, None if self.request.params.logprobs is None else certain)
        if target.tokens >= most:
            self._stream.abort(choice, target.tokens)
            return events + target.finish(FinishReason.LENGTH)
        if not target.finished:
            self._stream.rewrite(choice, kept, ids)
        return events

    def _take(self, output: ChoiceOutput) -> list[Event]:
        if output.prompt is not None:
            self.prompt.cached_tokens, self.prompt.queued = output.prompt.cached_tokens, output.prompt.queued
            if output.prompt.prompt_logprobs is not None:
                self.prompt.logprobs = [None, *(entry(self._tokenizer, each) for each in output.prompt.prompt_logprobs)]
        target, ids = self._outputs[output.choice], output.token_ids
        logprobs = None if output.logprobs is None else [entry(self._tokenizer, each) for each in output.logprobs]
        if output.finish is None:
            return target.push(ids, logprobs)
        hidden = output.stop_id is not None and not self.request.params.include_stop_str_in_output
        shown = len(ids) - hidden
        events = target.push(ids[:shown], None if logprobs is None else logprobs[:shown])
        if hidden:
            target.hide(ids[-1], None if logprobs is None else logprobs[-1])
        why: int | str | None = output.stop_id if output.stop_id in self._asked_stop_ids else None
        if output.kind == DeadlineExceeded.__name__:
            why = "deadline"
        return events + target.finish(FinishReason(output.finish), why)


def new_output(tokenizer: Tokenizer, request: Request, choice: int, parsing: Parsing | None = None) -> Output:
    """The way back of one choice."""
    params = request.params
    detokenizer = Detokenizer(
        tokenizer, params.skip_special_tokens, request.prompt_ids, params.spaces_between_special_tokens,
        frozenset() if parsing is None else parsing.shown,
    )  # fmt: skip
    return Output(detokenizer, choice, params.stop, params.include_stop_str_in_output, params.min_tokens, parsing)


def entry(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> LogprobEntry:
    """{id: Logprob} of the chosen id and the most likely ones."""
    made = {logprobs.token_id: Logprob(logprobs.logprob, logprobs.rank, tokenizer.token_text(logprobs.token_id))}
    for rank, (token_id, value) in enumerate(logprobs.top, 1):
        made.setdefault(token_id, Logprob(value, rank, tokenizer.token_text(token_id)))
    return made
