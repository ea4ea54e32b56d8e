"""What the options ask for -> how the guesses of a sequence are made. It knows the options and the methods by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.speculation.ngram import NgramProposer
from octavo.speculation.proposer import Proposer
from octavo.speculation.suffix import SuffixProposer

SHORTEST = 2  # ids of a match: pairs are what occurrences.py finds
LONGEST = 32  # of `ngram`: code and JSON repeat themselves, and only a long match finds the right place
MOST_TOKENS = 64
FLAG = "--speculative-config"


@dataclass(frozen=True, slots=True)
class Speculation:
    """A method and its bounds, decided once at start. new: the state for one sequence; None: no speculation."""

    new: Callable[[], Proposer] | None
    method: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.method}, up to {self.tokens} tokens a step"


def choose(config: EngineConfig) -> Speculation:
    """--speculative-config over --spec-method and --spec-tokens. ConfigError names the key."""
    asked = dict(config.speculative_config or {})
    method = asked.pop("method", config.spec_method)
    tokens = _count("num_speculative_tokens", asked.pop("num_speculative_tokens", config.spec_tokens), 1, MOST_TOKENS)
    longest = _count("prompt_lookup_max", asked.pop("prompt_lookup_max", LONGEST), 1, 1024)
    shortest = _count("prompt_lookup_min", asked.pop("prompt_lookup_min", min(SHORTEST, longest)), 1, longest)
    if asked:
        raise ConfigError(f"{FLAG}: unknown key {next(iter(asked))!r}.", flag=FLAG)
    methods: dict[str, Callable[[], Proposer] | None] = {
        "off": None,
        "ngram": lambda: NgramProposer(max(shortest, SHORTEST), max(longest, SHORTEST)),
        "suffix": SuffixProposer,
    }
    if not isinstance(method, str) or method not in methods:
        raise ConfigError(
            f"{FLAG}: method {method!r} is not known; expected ngram or suffix, which need no model.", flag=FLAG
        )
    return Speculation(methods[method], method, tokens)


def _count(key: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{FLAG}: {key}: expected a whole number from {low} to {high}, got {value!r}.", flag=FLAG)
    return value
