"""`LLM`: the synchronous face of AsyncLLM, with vLLM's names and shapes, in one process.

An event loop in a thread of its own runs everything; the calls here wait for it. It adds nothing but that, the progress
bar, and the forms in which people write prompts.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from octavo.async_llm import AsyncLLM, gather
from octavo.beam_search import BeamSearchParams, beam_search
from octavo.engine.messages import EngineStats
from octavo.errors import InvalidRequest
from octavo.request import ChatRequest, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.start import start_in_process
from octavo.text.best_of import Answers

T = TypeVar("T")
Prompt = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]
OFFLINE_STEP_TIME = 1000.0  # ms: nobody waits for a token between two steps


class LLM:
    """A model in this process: `LLM("smollm2:135m").generate("Once upon a time")`.

    model: folder, .gguf file, hub id or catalogue name. options: those of `octavo serve`, with underscores
    (max_model_len=4096, kv_cache_dtype="float32", threads=2, seed=0 ...). Raises ConfigError, ModelNotFound,
    CheckpointError, UnsupportedModel or DoesNotFit.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        options.setdefault("step_time", OFFLINE_STEP_TIME)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="octavo-llm", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self.llm: AsyncLLM = self._wait(start_in_process(model, options))
        except BaseException:
            self._stop()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts: a text, ids, {"prompt": text}, {"prompt_token_ids": ids}, or a list of such.

        sampling_params: one for all, or one each; None: the model's defaults. The answers stand in the prompts' order.
        """
        listed = _listed(prompts)
        params = self._params(sampling_params, len(listed))
        calls = [self.llm.submit(_unwrap(prompt), each) for prompt, each in zip(listed, params, strict=True)]
        return self._wait(_gather(calls, use_tqdm))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation (a list of {"role", "content"}) or a list of conversations. tools: functions that the
        model is told of; its calls come as text, as it writes them."""
        one = bool(messages) and isinstance(messages[0], Mapping)
        listed = [cast(Messages, messages)] if one else cast(Sequence[Messages], messages)
        params = self._params(sampling_params, len(listed))
        calls = [
            self.llm.submit_chat(
                ChatRequest(
                    each,
                    param,
                    add_generation_prompt,
                    continue_final_message,
                    chat_template,
                    chat_template_kwargs or {},
                    tools or (),
                ),
                raw=True,
            )
            for each, param in zip(listed, params, strict=True)
        ]
        return self._wait(_gather(calls, use_tqdm))

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """The `params.beam_width` best answers to each prompt, the best first; `cumulative_logprob` is a beam's own."""
        given = SamplingParams(n=params.beam_width, logprobs=0, max_tokens=params.max_tokens, temperature=0)
        calls = [beam_search(self.llm, _unwrap(prompt), params, given) for prompt in _listed(prompts)]
        return self._wait(_gather(calls, use_tqdm))

    def score_tokens(self, prompts: Prompt | Sequence[Prompt], use_tqdm: bool = True) -> list[list[float]]:
        """Log-probability of every token of each prompt given those before it: one fewer than it has tokens."""
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, ignore_eos=True, detokenize=False)
        scores = []
        for output in self.generate(prompts, params, use_tqdm):
            rest = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [None])[1:], strict=True)
            scores.append([entry[id_].logprob for id_, entry in rest if entry is not None])
        return scores

    def embed(self, texts: Prompt | Sequence[Prompt], dimensions: int | None = None) -> list[NDArray[np.float32]]:
        """The vector of each text (or list of ids), of an embedding model. dimensions: the first so many numbers of
        each, made to length 1 again."""
        prompts = [_unwrap(each) for each in _listed(texts)]
        made = self._wait(self.llm.vectors.embed(prompts, dimensions=dimensions))
        return [each.vector for each in made]

    def score(self, query: str, documents: str | Sequence[str]) -> list[float]:
        """How near each document is to the query: by a reranker, or by the cosine of embeddings."""
        listed = [documents] if isinstance(documents, str) else documents
        return [each.value for each in self._wait(self.llm.vectors.score(query, listed))]

    def rank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> list[tuple[int, float]]:
        """(index of the document, score), the nearest first."""
        scores = self.score(query, documents)
        return sorted(enumerate(scores), key=lambda each: (-each[1], each[0]))[:top_n]

    def get_tokenizer(self) -> Any:
        """The tokenizer: encode, decode and the special ids."""
        return self.llm.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where `sampling_params` is None."""
        return self.llm.default_sampling_params()

    def stats(self) -> EngineStats:
        """Gauges of now, and totals since the engine's start."""
        return self._wait(self.llm.client.stats())

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self._wait(self.llm.client.reset_prefix_cache())

    def close(self) -> None:
        """Free the model's memory; also done at the end of a `with`."""
        if not self._closed:
            self._closed = True
            self._wait(self.llm.close())
            self._stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _params(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.get_default_sampling_params()] * count
        if len(given) != count:
            raise InvalidRequest(f"{count} prompts but {len(given)} sampling_params.", param="sampling_params")
        return list(given)

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several? A list of numbers is one prompt of ids."""
    if isinstance(prompts, str | Mapping) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


def _unwrap(prompt: Prompt) -> str | Sequence[int]:
    if not isinstance(prompt, Mapping):
        return prompt
    found: str | Sequence[int] | None = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if found is None:
        raise InvalidRequest("a prompt given as a dict needs 'prompt' or 'prompt_token_ids'.", param="prompt")
    return found


async def _gather(calls: Sequence[Coroutine[Any, Any, Answers]], bar: bool) -> list[RequestOutput]:
    """Run all; the last RequestOutput of each."""
    generations = [await call for call in calls]
    with _Progress(len(calls), bar) as progress:

        async def last(generation: Answers) -> RequestOutput:
            output = await gather(generation)
            progress.advance(generation.usage.completion_tokens)
            return output

        return list(await asyncio.gather(*(last(each) for each in generations)))


class _Progress:
    """A bar of finished prompts on stderr, where stderr is a terminal."""

    def __init__(self, total: int, wanted: bool) -> None:
        self._bar: Any = None
        self._tokens = 0
        if wanted and sys.stderr.isatty():
            from rich.console import Console  # drawn only here: 40 ms
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                "prompts",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=False)
            self._task = self._bar.add_task("prompts", total=total, rate="")

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, tokens: int) -> None:
        self._tokens += tokens
        if self._bar is not None:
            elapsed = self._bar.tasks[0].elapsed or 0.0
            rate = f"{self._tokens / elapsed:,.0f} tok/s" if elapsed else ""
            self._bar.update(self._task, advance=1, rate=rate)
