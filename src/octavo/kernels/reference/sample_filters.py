"""One function per sampling parameter: what each means, in numpy, with full sorts and no thought of speed.

Those of the first half change a row's values in place (float32, each operation rounded as the kernel rounds it); those
of the second half say which ids stay (bool [V]). They know one row and its parameters; nothing of batches, steps or
threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]  # [V]
Kept = npt.NDArray[np.bool_]  # [V]
Weights = npt.NDArray[np.float64]  # [V]
_LARGEST = np.float32(3.4e38)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The row of the slot table that the sampler reads, and `ids`: what stands before the position to be sampled."""

    ids: Sequence[int]
    prompt_len: int
    min_known: int = 0
    seed: int = 0
    choice: int = 0
    stop_ids: Sequence[int] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int = -1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: Sequence[Sequence[int]] = ()
    allowed: Kept | None = None


def order(values: Row) -> npt.NDArray[np.int64]:
    """Ids in the total order: value descending, id ascending."""
    return np.lexsort((np.arange(len(values)), -values.astype(np.float64)))


def allow(values: Row, allowed: Kept) -> None:
    """allowed_token_ids and grammars: all other ids are forbidden."""
    values[~allowed] = -np.inf


def bias(values: Row, logit_bias: Mapping[int, float]) -> None:
    """logit_bias is added."""
    for token, value in logit_bias.items():
        values[token] += np.float32(value)


def forbid_words(values: Row, bad_words: Sequence[Sequence[int]], ids: Sequence[int]) -> None:
    """The last id of a bad word is forbidden where the ids before it are the tail of what is known."""
    for word in bad_words:
        start = list(word[:-1])
        if len(start) <= len(ids) and list(ids[len(ids) - len(start) :]) == start:
            values[word[-1]] = -np.inf


def forbid_ends(values: Row, stop_ids: Sequence[int]) -> None:
    """min_tokens: ids that end the sequence are forbidden."""
    values[list(stop_ids)] = -np.inf


def penalize_repetition(values: Row, penalty: float, ids: Sequence[int]) -> None:
    """Ids of prompt and output: positive values are divided by the penalty, others multiplied."""
    seen = sorted(set(ids))
    divisor = np.float32(penalty)
    with np.errstate(over="ignore"):
        changed = np.where(values[seen] > 0, values[seen] / divisor, values[seen] * divisor)
    values[seen] = np.minimum(changed, _LARGEST)


def penalize_presence(values: Row, presence: float, frequency: float, output: Sequence[int]) -> None:
    """Ids of the output: minus frequency per occurrence, minus presence once."""
    for token in set(output):
        count = np.float32(list(output).count(token))
        values[token] = values[token] - np.float32(frequency) * count - np.float32(presence)


def change(values: Row, row: Parameters) -> None:
    """All of the above in their order."""
    if row.allowed is not None:
        allow(values, row.allowed)
    bias(values, row.logit_bias)
    forbid_words(values, row.bad_words, row.ids)
    if len(row.ids) < row.min_known:
        forbid_ends(values, row.stop_ids)
    if row.repetition_penalty != 1:
        penalize_repetition(values, row.repetition_penalty, row.ids)
    penalize_presence(values, row.presence_penalty, row.frequency_penalty, row.ids[row.prompt_len :])


def weights_of(values: Row, temperature: float) -> Weights:
    """e^((value - max) / temperature): the exponent in float32 as the kernel has it, the power in float64."""
    with np.errstate(over="ignore"):
        exponent = (values - values.max()) * (np.float32(1) / np.float32(temperature))
    return np.asarray(np.exp(exponent.astype(np.float64)))


def min_p(weights: Weights, least: float) -> Kept:
    """Ids of at least `least` of the greatest weight, which is 1."""
    return np.asarray(weights >= float(np.float32(least)))


def top_k(values: Row, kept: Kept, k: int) -> Kept:
    """The first k in the total order of those that are kept."""
    if k <= 0:
        return kept
    ranked = order(values)
    made = np.zeros(len(values), bool)
    made[ranked[kept[ranked]][:k]] = True
    return made


def top_p(values: Row, weights: Weights, kept: Kept, share: float) -> Kept:
    """In the total order, ids stay while the weight before them is below `share` of all that is kept."""
    part = float(np.float32(share))
    if part >= 1:
        return kept
    ranked = order(values)
    ranked = ranked[kept[ranked]]
    sums = np.cumsum(weights[ranked])
    before = np.concatenate(([0.0], sums[:-1]))
    made = np.zeros(len(values), bool)
    made[ranked[before < part * sums[-1]]] = True
    return made
