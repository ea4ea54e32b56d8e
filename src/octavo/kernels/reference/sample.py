"""The sampler by its definition: logits -> ids, log-probabilities, ranks, lists of the most likely ids. In numpy.

What the node "sample" (native/kernels/sample.cc) is held against. Order of the steps: raw log-probabilities are kept ->
allowed ids, logit_bias, bad_words, min_tokens -> repetition, frequency and presence penalties -> temperature 0: the
first id of the total order -> else temperature, min_p, top_k, top_p -> one Philox number picks in ascending ids. As in
vLLM, but that ties are settled by the id. It knows the views of the flat step and the slot table; nothing of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.kernels.reference import sample_filters as filters
from octavo.kernels.reference.philox import uniform
from octavo.kernels.reference.sample_filters import Parameters, Row
from octavo.sampling_params import MAX_TOP_LOGPROBS

Views = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Sampled:
    """One result row. `edge`: how far the drawn point was from another id, as a share of the whole weight."""

    token: int
    status: int = 0  # 1: a raw logit is not finite, 2: nothing may be chosen
    logprob: float = 0.0
    rank: int = 0
    top: tuple[tuple[int, float], ...] = ()
    edge: float = float("inf")


def log_softmax(logits: Row) -> npt.NDArray[np.float64]:
    """[V] float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def choose(values: Row, row: Parameters) -> tuple[int, float]:
    """The id and the edge of the decision, from changed values."""
    if row.temperature == 0:
        return int(filters.order(values)[0]), np.inf
    weights = filters.weights_of(values, row.temperature)
    kept = filters.min_p(weights, row.min_p)
    kept = filters.top_k(values, kept, row.top_k)
    kept = filters.top_p(values, weights, kept, row.top_p)
    sums = np.cumsum(np.where(kept, weights, 0.0))
    point = uniform(row.seed, len(row.ids), row.choice) * sums[-1]
    token = int(np.searchsorted(sums, point, side="right"))
    return token, float(np.abs(sums - point).min() / sums[-1])


def sample_row(logits: Row, row: Parameters, target: int = -1) -> Sampled:
    """Sample one row [V] float32, or report `target` (a prompt id) if it is not negative."""
    if not np.isfinite(logits).all():
        return Sampled(-1, 1)
    wanted, token, edge = row.logprobs, target, np.inf
    if target >= 0:
        wanted = MAX_TOP_LOGPROBS
        if target >= len(logits):
            return Sampled(-1, 2)
    else:
        values = logits.copy()
        filters.change(values, row)
        if values.max() == -np.inf:
            return Sampled(-1, 2)
        token, edge = choose(values, row)
    if wanted < 0:
        return Sampled(token, edge=edge)
    logprobs, ranked = log_softmax(logits), filters.order(logits)
    top = tuple((int(each), float(logprobs[each])) for each in ranked[:wanted])
    rank = 1 + int(np.flatnonzero(ranked == token)[0])
    return Sampled(token, 0, float(logprobs[token]), rank, top, edge)


def parameters_of(slots: Views, slot: int, position: int, vocab: int) -> Parameters:
    """The row of the slot table as the definitions want it."""
    words, packed = [], slots["bad_word"][slot].tolist()
    while packed and packed[0] > 0:
        words.append(packed[1 : 1 + packed[0]])
        packed = packed[1 + packed[0] :]
    allowed = None
    if slots["masked"][slot]:
        allowed = np.unpackbits(slots["mask"][slot].view(np.uint8), bitorder="little")[:vocab].astype(bool)
    count = int(slots["biases"][slot])
    whole = ("min_known", "seed", "choice", "top_k", "logprobs", "prompt_len")
    real = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    scalars: dict[str, Any] = {name: slots[name][slot].item() for name in whole + real}
    return Parameters(
        ids=slots["ids"][slot][:position].tolist(),
        stop_ids=slots["stop_id"][slot][: slots["stop_ids"][slot]].tolist(),
        logit_bias=dict(
            zip(slots["bias_id"][slot][:count].tolist(), slots["bias_value"][slot][:count].tolist(), strict=True)
        ),
        bad_words=words,
        allowed=allowed,
        **scalars,
    )


def sample(logits: npt.NDArray[np.float32], step: Views, slots: Views, first: int = 0, result_first: int = 0) -> int:
    """The node: logits [rows, V] of the logit rows from `first` on into the result fields of the step.

    Returns the number of rows that have no result, which the kernel adds to header.nonfinite.
    """
    refused = 0
    for index, values in enumerate(logits):
        row, out = first + index, result_first + first + index
        slot = int(step["seq_slot"][step["logit_seq"][row]])
        position = int(step["row_pos"][step["logit_row"][row]]) + 1
        made = sample_row(values, parameters_of(slots, slot, position, len(values)), int(step["logit_target"][row]))
        for name in ("token", "logprob", "rank", "status"):
            step["out_" + name][out] = getattr(made, name)
        step["out_top_id"][out], step["out_top_logprob"][out] = -1, 0
        for place, (token, logprob) in enumerate(made.top):
            step["out_top_id"][out, place], step["out_top_logprob"][out, place] = token, logprob
        refused += made.status != 0
    return refused
