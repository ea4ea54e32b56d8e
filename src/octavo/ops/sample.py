"""sample(logits): the sampler as an anchor: logits of a chunk of rows -> ids, logprobs, ranks in the flat step.

Order of its steps: a row with a non-finite raw logit ends with status 1; raw values are kept for log-probabilities and
ranks -> allowed ids, logit_bias, bad_words, min_tokens -> repetition, then frequency and presence penalties, DRY ->
temperature 0: the first id of the total order -> else temperature, min_p, top_k, top_p, one Philox number. Ties: logit
descending, id ascending. As in vLLM, but for ties. A slot with a chain (any other sampler, or an order of the user's)
runs its samplers one after the other, each on what is left. The parameters are columns of the slot table; each is
defined in kernels/reference/sample_filters.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.ops.op import Attrs, Contract, Locality, Op, Results, bit_equal
from octavo.program.graph import Node, Value
from octavo.program.symbols import Sum, Values


def _results(operands: Sequence[Value], attrs: Attrs) -> Results:
    return [((operands[0].shape[0],), "i32")]


def _operations(node: Node) -> Sum:
    return Sum((node.operands[0].shape[0] * (4 * node.operands[0].width),))


def sample_workspace(vocab: int, threads: int) -> int:
    """Bytes of workspace: one thread does a whole row (native/kernels/sample.cc, sample_bytes).

    Per thread and vocabulary entry, filled up to blocks of 256: a logit, an id and two weights of 4 bytes, maxima of
    half a byte, and a sum for every 256.
    """
    padded = -(-vocab // 256) * 256
    return threads * (16 * padded + padded // 2 + -(-(padded // 64) // 64) * 64)


def _workspace(node: Node, bounds: Values) -> int:
    return sample_workspace(node.operands[0].width, bounds["threads"])


SAMPLE = Op(
    "sample", "anchor", Locality.ROW, Contract("float32", "columns ascending in blocks, rows of a sequence in order"),
    _results, bit_equal, _operations, _workspace,
)  # fmt: skip


def sample(logits: Value) -> Value:
    """logits [R, V] f32 -> ids [R] i32 (which native code writes into out_token, with the other results)."""
    return SAMPLE(logits)
