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
    chain: Sequence[str] = ()  # names of samplers, the last one "pick" or a mirostat; empty: the usual way
    repeat_last_n: int = -1
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    mu: float = 10.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    breakers: Kept | None = None


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


def last(ids: Sequence[int], n: int) -> Sequence[int]:
    """The last n of them; all if n is negative."""
    return ids if n < 0 else ids[len(ids) - min(n, len(ids)) :]


def penalize(values: Row, row: Parameters) -> None:
    """repetition, presence and frequency penalties over the last repeat_last_n ids."""
    seen = len(last(row.ids, row.repeat_last_n))
    if row.repetition_penalty != 1:
        penalize_repetition(values, row.repetition_penalty, row.ids[len(row.ids) - seen :])
    penalize_presence(
        values, row.presence_penalty, row.frequency_penalty, row.ids[max(row.prompt_len, len(row.ids) - seen) :]
    )


DRY_LONGEST = 64


def dry(values: Row, row: Parameters) -> None:
    """DRY: an id that followed an earlier occurrence of the output's last n ids costs multiplier * base^(n - allowed).

    n is the longest such length since the last breaker, at most DRY_LONGEST beyond the allowed one.
    """
    output = list(last(row.ids[row.prompt_len :], row.dry_penalty_last_n))
    breakers = np.zeros(len(values), bool) if row.breakers is None else row.breakers
    broken = [k for k, token in enumerate(output) if breakers[token]]
    unbroken = len(output) - (broken[-1] + 1 if broken else 0)
    longest: dict[int, int] = {}
    for k in range(1, len(output)):
        n = 0
        while n < min(k, unbroken, row.dry_allowed_length + DRY_LONGEST) and output[k - 1 - n] == output[-1 - n]:
            n += 1
        if n >= row.dry_allowed_length:
            longest[output[k]] = max(n, longest.get(output[k], 0))
    for token, n in longest.items():
        cost = float(np.float32(row.dry_multiplier))
        for _ in range(n - row.dry_allowed_length):
            cost *= float(np.float32(row.dry_base))
        if values[token] > -np.inf:
            values[token] = max(float(values[token]) - float(np.float32(min(cost, 3.4e38))), -3.4e38)


def change(values: Row, row: Parameters) -> None:
    """What stands before every sampler, in its order."""
    if row.allowed is not None:
        allow(values, row.allowed)
    bias(values, row.logit_bias)
    forbid_words(values, row.bad_words, row.ids)
    if len(row.ids) < row.min_known:
        forbid_ends(values, row.stop_ids)


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


# Samplers of a chain: they see only what those before them left (others are -inf), and weights e^(value - max).


def spread(values: Row) -> tuple[Weights, float]:
    """The probabilities and their entropy in nats."""
    weights = weights_of(values, 1.0)
    p = weights / weights.sum()
    held = p > 0
    return p, float(-(p[held] * np.log(p[held])).sum())


def top_n_sigma(values: Row, n: float) -> Kept:
    """Values within n standard deviations of the greatest one."""
    held = values[values > -np.inf].astype(np.float64)
    return np.asarray(values >= np.float32(held.max() - float(np.float32(n)) * held.std()))


def typical(values: Row, share: float) -> Kept:
    """Ids by |surprise - entropy|, then by id, stay while the probability before them is below the share."""
    p, _ = spread(values)
    # -ln p - entropy is the distance of a value to the mean one, so that equal values stay equal.
    centre = np.float32(float(values.max()) + float((p * np.where(p > 0, values - values.max(), 0)).sum()))
    distance = np.abs(values - centre)
    ranked = np.lexsort((np.arange(len(values)), distance))
    before = np.concatenate(([0.0], np.cumsum(p[ranked])[:-1]))
    made = np.zeros(len(values), bool)
    made[ranked[before < float(np.float32(share))]] = True
    return made & (values > -np.inf)


def xtc(values: Row, threshold: float) -> Kept:
    """Of the ids whose probability reaches the threshold, all but the last in the total order leave."""
    p, _ = spread(values)
    ranked = order(values)
    reached = ranked[(p[ranked] >= float(np.float32(threshold))) & (values[ranked] > -np.inf)]
    made = np.asarray(values > -np.inf)
    made[reached[:-1]] = False
    return made


def temperature_of(values: Row, row: Parameters) -> np.float32:
    """The one given, or with dynatemp_range the one that the entropy chooses, at least 0.01."""
    given, reach = float(np.float32(row.temperature)), float(np.float32(row.dynatemp_range))
    count = np.count_nonzero(values > -np.inf)
    if reach <= 0 or count < 2:
        return np.float32(given)
    low, high = max(0.0, given - reach), given + reach
    share = min(1.0, max(0.0, spread(values)[1] / float(np.log(count))))
    return np.float32(max(0.01, low + (high - low) * share ** float(np.float32(row.dynatemp_exponent))))


def scale(values: Row, temperature: np.float32) -> None:
    """Values are divided by the temperature."""
    with np.errstate(over="ignore"):
        values[:] = np.minimum(values * (np.float32(1) / temperature), _LARGEST)


def mirostat_v2(values: Row, mu: float) -> Kept:
    """Ids with a surprise of at most mu bits, and the most likely one."""
    p, _ = spread(values)
    made = np.asarray(p >= 2.0 ** -float(mu)) & (values > -np.inf)
    made[order(values)[0]] = True
    return made


def mirostat(values: Row, mu: float) -> Kept:
    """The first k ids; k from the exponent of Zipf's law among the 100 most likely ones (Basu et al., 2021)."""
    ranked = order(values)
    ranked = ranked[values[ranked] > -np.inf][:100]
    i = np.arange(1, len(ranked))
    t = np.log((i + 1) / i)
    b = values[ranked[:-1]].astype(np.float64) - values[ranked[1:]]
    total, held = len(values), np.asarray(values > -np.inf)
    if not (t * b).sum() > 0:
        return held
    s = float((t * b).sum() / (t * t).sum())
    e = s - 1
    share = 1 / np.log(total) if abs(e) < 1e-9 else e / (1 - np.exp(-e * np.log(total)))
    exponent = min((np.log(share) + float(mu) * np.log(2)) / s, 700.0)  # of e; (share * 2^mu)^(1 / s) may overflow
    k = int(min(max(np.exp(exponent), 1.0), total))
    return top_k(values, held, k)


def next_mu(values: Row, token: int, row: Parameters) -> float:
    """Mirostat's state after a token: mu - eta (surprise - tau)."""
    p, _ = spread(values)
    surprise = -float(np.log2(p[token]))
    return row.mu - float(np.float32(row.mirostat_eta)) * (surprise - float(np.float32(row.mirostat_tau)))
