"""A decoder that gives vectors: its body and the norm before its head, or a classifier's head in the place of its own.

It knows no family: any Decoder will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from octavo.checkpoints.pooling import Pooling
from octavo.layers.linear import Linear
from octavo.models.decoder import Decoder
from octavo.models.names import WeightNames
from octavo.ops.embedding import gather_rows
from octavo.program.graph import Program
from octavo.program.symbols import S, T


@dataclass(frozen=True)
class Embedder:
    """One model; `functions` are what `program.trace.trace` runs."""

    decoder: Decoder
    pooling: Pooling

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def max_positions(self) -> int:
        return self.decoder.max_positions

    @property
    def tied(self) -> bool:
        return self.decoder.tied

    @property
    def names(self) -> WeightNames:
        return replace(self.decoder.names, unused=r"^lm_head\.|^output\.weight$|^score\.")

    @property
    def functions(self) -> Mapping[str, Callable[[Program], None]]:
        return {"body": self.body, "head": self.head} if self.pooling.labels else {"body": self.body}

    def body(self, program: Program) -> None:
        """Token rows T -> the rows that transformers calls last_hidden_state, `h` [T, width]."""
        self.decoder.body(program)
        with program.within("norm"):
            program.output("h", self.decoder.norm(program.outputs["h"]))

    def head(self, program: Program) -> None:
        """The last row of each sequence of `h` -> `scores` [S, labels]."""
        hidden = program.input("h", (T, self.decoder.width), "f32")
        rows = program.input("logit_row", (S,), "i32", source="logit_row")
        with program.within("head"):
            score = Linear("score", self.decoder.width, self.pooling.labels)
            program.output("scores", score(gather_rows(hidden, rows)))
