"""A decoder that gives vectors: its body and the norm before its head; or scores, by a classifier's head in the place
of its own, or by the rows of its own head that stand for answers.

It knows no family: any Decoder will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from octavo.checkpoints.pooling import Pooling
from octavo.layers.linear import Linear
from octavo.models.decoder import Decoder
from octavo.models.names import Part, WeightNames
from octavo.ops.embedding import gather_rows
from octavo.program.graph import Program
from octavo.program.symbols import S, T

SCORE = "score"  # the head's layer, as transformers calls it


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
        names, fused = self.decoder.names, {}
        if self.pooling.answers is not None:
            whole = "model.embed_tokens" if self.tied else "lm_head"
            fused = {SCORE: Part(whole, 0, self.vocab_size, self.pooling.answers)}
        return replace(
            names, gguf={**names.gguf, SCORE: "cls.output"}, fused={**names.fused, **fused},
            unused=r"^lm_head\.|^output\.weight$|^score\.",
        )  # fmt: skip

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
            score = Linear(SCORE, self.decoder.width, self.pooling.labels)
            program.output("scores", score(gather_rows(hidden, rows)))
