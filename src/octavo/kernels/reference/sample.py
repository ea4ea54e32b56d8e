"""The sampler by its definition: logits -> ids, log-probabilities, ranks, lists of the most likely ids. In numpy.

What the node "sample" (native/kernels/sample.cc) is held against. Order of the steps: raw log-probabilities are kept ->
allowed ids, logit_bias, bad_words, min_tokens -> repetition, frequency and presence penalties -> temperature 0: the
first id of the total order -> else temperature, min_p, top_k, top_p -> one Philox number picks in ascending ids. As in
vLLM, but that ties are settled by the id. A row with a chain has its samplers in its own order instead. It knows the
views of the flat step and the slot table; nothing of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.kernels.reference import sample_filters as filters
from octavo.kernels.reference.philox import uniform
from octavo.kernels.reference.sample_filters import Parameters, Row
from octavo.sampling_params import MAX_TOP_LOGPROBS, SAMPLER_CODES

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
    mu: float = 0.0  # Mirostat's state after the token


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
    return pick(np.where(kept, weights, 0.0), row)


def pick(weights: filters.Weights, row: Parameters) -> tuple[int, float]:
    """One number picks an id from the cumulative weights in ascending ids."""
    sums = np.cumsum(weights)
    point = uniform(row.seed, len(row.ids), row.choice) * sums[-1]
    return int(np.searchsorted(sums, point, side="right")), float(np.abs(sums - point).min() / sums[-1])


def run_chain(values: Row, row: Parameters) -> tuple[int, float, float]:
    """The id, the edge of the decision and Mirostat's state, from values that the chain's samplers change in turn."""
    for name in row.chain:
        if name == "penalties":
            filters.penalize(values, row)
        elif name == "dry":
            filters.dry(values, row)
        elif row.temperature == 0:
            continue
        elif name == "temperature":
            filters.scale(values, filters.temperature_of(values, row))
        elif name != "xtc" or uniform(row.seed, len(row.ids), row.choice, 1) < float(np.float32(row.xtc_probability)):
            values[~_kept(name, values, row)] = -np.inf
    if row.temperature == 0:
        return int(filters.order(values)[0]), np.inf, row.mu
    token, edge = pick(filters.weights_of(values, 1.0), row)
    return token, edge, filters.next_mu(values, token, row) if row.chain[-1].startswith("mirostat") else row.mu


def _kept(name: str, values: Row, row: Parameters) -> filters.Kept:
    """What one sampler keeps of what is left."""
    held = np.asarray(values > -np.inf)
    made: dict[str, Callable[[], filters.Kept]] = {
        "top_n_sigma": lambda: filters.top_n_sigma(values, row.top_n_sigma),
        "top_k": lambda: filters.top_k(values, held, row.top_k),
        "typ_p": lambda: filters.typical(values, row.typical_p),
        "top_p": lambda: filters.top_p(values, filters.weights_of(values, 1.0), held, row.top_p),
        "min_p": lambda: filters.min_p(filters.weights_of(values, 1.0), row.min_p),
        "xtc": lambda: filters.xtc(values, row.xtc_threshold),
        "mirostat": lambda: filters.mirostat(values, row.mu),
        "mirostat_v2": lambda: filters.mirostat_v2(values, row.mu),
        "pick": lambda: held,
    }
    return made[name]()


def sample_row(logits: Row, row: Parameters, target: int = -1) -> Sampled:
    """Sample one row [V] float32, or report `target` (a prompt id) if it is not negative."""
    if not np.isfinite(logits).all():
        return Sampled(-1, 1)
    wanted, token, edge, mu = row.logprobs, target, np.inf, row.mu
    if target >= 0:
        wanted = MAX_TOP_LOGPROBS
        if target >= len(logits):
            return Sampled(-1, 2)
    else:
        values = logits.copy()
        filters.change(values, row)
        if values.max() == -np.inf:
            return Sampled(-1, 2)
        if row.chain:
            token, edge, mu = run_chain(values, row)
        else:
            filters.penalize(values, row)
            token, edge = choose(values, row)
    if wanted < 0:
        return Sampled(token, edge=edge, mu=mu)
    logprobs, ranked = log_softmax(logits), filters.order(logits)
    top = tuple((int(each), float(logprobs[each])) for each in ranked[:wanted])
    rank = 1 + int(np.flatnonzero(ranked == token)[0])
    return Sampled(token, 0, float(logprobs[token]), rank, top, edge, mu)


def _bits(words: npt.NDArray[np.uint32], vocab: int) -> filters.Kept:
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab].astype(bool)


def parameters_of(slots: Views, slot: int, position: int, vocab: int) -> Parameters:
    """The row of the slot table as the definitions want it."""
    words, packed = [], slots["bad_word"][slot].tolist()
    while packed and packed[0] > 0:
        words.append(packed[1 : 1 + packed[0]])
        packed = packed[1 + packed[0] :]
    allowed = None
    if slots["masked"][slot]:
        allowed = _bits(slots["mask"][slot], vocab)
    count = int(slots["biases"][slot])
    lists = ("ids", "stop_ids", "logit_bias", "bad_words", "allowed", "chain", "breakers")
    scalars: dict[str, Any] = {
        each.name: slots[each.name][slot].item() for each in fields(Parameters) if each.name not in lists
    }
    names = {code: name for name, code in SAMPLER_CODES.items()}
    return Parameters(
        ids=slots["ids"][slot][:position].tolist(),
        stop_ids=slots["stop_id"][slot][: slots["stop_ids"][slot]].tolist(),
        logit_bias=dict(
            zip(slots["bias_id"][slot][:count].tolist(), slots["bias_value"][slot][:count].tolist(), strict=True)
        ),
        bad_words=words,
        allowed=allowed,
        chain=[names[code] for code in slots["chain"][slot].tolist() if code],
        breakers=_bits(slots["breaker"][slot], vocab),
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
        for name in ("token", "logprob", "rank", "status", "mu"):
            step["out_" + name][out] = getattr(made, name)
        step["out_top_id"][out], step["out_top_logprob"][out] = -1, 0
        for place, (token, logprob) in enumerate(made.top):
            step["out_top_id"][out, place], step["out_top_logprob"][out, place] = token, logprob
        refused += made.status != 0
    return refused
