"""Float weights -> the bytes of every GGUF format, and a GGUF file written anew in another format.

By the gguf package where it quantizes a format; else rounded to nearest here (k-quants, IQ4), without its search for
better scales; i-quants with a grid get random codes whose spread is that of the weights: bytes of a real shape, not a
model that speaks. Independent of the code under test: only sizes come from the gguf package.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
SUPER = 256


def _half(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, np.float16).view(np.uint8).reshape(len(values), -1)


def _ratio(values: Floats, by: Floats) -> Floats:
    return np.divide(values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0)


def _rounded_half(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def _with_minima(x: Floats, group: int, codes: int, scales: int) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
    """x [blocks, 256] -> d, dmin [blocks, 1], scales, minima [blocks, groups], codes [blocks, 256]."""
    groups = x.reshape(len(x), -1, group)
    low = np.minimum(groups.min(axis=2), 0)
    step = (np.maximum(groups.max(axis=2), 0) - low) / codes
    d, dmin = (_rounded_half(each.max(axis=1, keepdims=True) / scales) for each in (step, -low))
    s, m = (np.rint(_ratio(each, by)).clip(0, scales) for each, by in ((step, d), (-low, dmin)))
    q = np.rint(_ratio(groups + (dmin * m)[:, :, None], (d * s)[:, :, None])).clip(0, codes)
    return d, dmin, s.astype(np.uint8), m.astype(np.uint8), q.reshape(len(x), -1).astype(np.uint8)


def _pairs(q: Bytes) -> Bytes:
    """Two low bits of 256 codes -> 64 bytes: of each half, element n * 32 + i is at bits 2n of byte i."""
    fields = (q & 3).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.bitwise_or.reduce(fields, axis=2).reshape(-1, 64)


def _bits(q: Bytes) -> Bytes:
    """One bit of 256 codes -> 32 bytes: element n * 32 + i is bit n of byte i."""
    return np.packbits(q.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)


def _nibbles(q: Bytes, run: int) -> Bytes:
    """Low nibbles of codes, pairs of runs side by side: of Q4_K runs of 32, of IQ4 of 16."""
    runs = (q & 15).reshape(len(q), -1, 2, run)
    return (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(len(q), -1)


def _six_bits(s: Bytes, m: Bytes) -> Bytes:
    first = (s[:, :4] & 63) | (s[:, 4:] >> 4) << 6
    second = (m[:, :4] & 63) | (m[:, 4:] >> 4) << 6
    return np.concatenate([first, second, (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], axis=1)


def q2_k(x: Floats) -> Bytes:
    d, dmin, s, m, q = _with_minima(x, 16, 3, 15)
    return np.concatenate([s | m << 4, _pairs(q), _half(d), _half(dmin)], axis=1)


def q3_k(x: Floats) -> Bytes:
    groups = x.reshape(len(x), 16, 16)
    top = np.abs(groups).max(axis=2) / 4
    d = _rounded_half(top.max(axis=1, keepdims=True) / 31)
    s = np.rint(_ratio(top, d)).clip(0, 31)
    q = (np.rint(_ratio(groups, (d * s)[:, :, None])).clip(-4, 3) + 4).reshape(len(x), -1).astype(np.uint8)
    six = s.astype(np.uint8) + 32
    low = six[:, :8] & 15 | (six[:, 8:] & 15) << 4
    high = np.bitwise_or.reduce((six >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=1)
    return np.concatenate([_bits(q >> 2 & 1), _pairs(q), low, high, _half(d)], axis=1)


def q4_k(x: Floats) -> Bytes:
    d, dmin, s, m, q = _with_minima(x, 32, 15, 63)
    return np.concatenate([_half(d), _half(dmin), _six_bits(s, m), _nibbles(q, 32)], axis=1)


def q5_k(x: Floats) -> Bytes:
    d, dmin, s, m, q = _with_minima(x, 32, 31, 63)
    return np.concatenate([_half(d), _half(dmin), _six_bits(s, m), _bits(q >> 4), _nibbles(q, 32)], axis=1)


def q6_k(x: Floats) -> Bytes:
    groups = x.reshape(len(x), 16, 16)
    top = np.abs(groups).max(axis=2) / 32
    d = _rounded_half(top.max(axis=1, keepdims=True) / 127)
    s = np.rint(_ratio(top, d)).clip(0, 127)
    q = (np.rint(_ratio(groups, (d * s)[:, :, None])).clip(-32, 31) + 32).reshape(len(x), -1).astype(np.uint8)
    halves = (q & 15).reshape(-1, 2, 2, 64)
    low = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(x), 128)
    return np.concatenate([low, _pairs(q >> 4), s.astype(np.uint8), _half(d)], axis=1)


def _nearest(x: Floats) -> Bytes:
    """Multiples of a scale -> places in NL."""
    return np.searchsorted((NL[1:] + NL[:-1]) / 2, x).astype(np.uint8)


def iq4_nl(x: Floats) -> Bytes:
    d = _rounded_half(np.abs(x).max(axis=1, keepdims=True) / 120)
    return np.concatenate([_half(d), _nibbles(_nearest(_ratio(x, d)), 16)], axis=1)


def iq4_xs(x: Floats) -> Bytes:
    groups = x.reshape(len(x), 8, 32)
    top = np.abs(groups).max(axis=2) / 120
    d = _rounded_half(top.max(axis=1, keepdims=True) / 31)
    s = np.rint(_ratio(top, d)).clip(0, 31)
    q = _nearest(_ratio(groups, (d * s)[:, :, None])).reshape(len(x), -1)
    six = s.astype(np.uint16) + 32
    high = np.bitwise_or.reduce(six >> 4 << np.arange(0, 16, 2, dtype=np.uint16), axis=1).astype(np.uint16)
    low = (six[:, 0::2] & 15 | (six[:, 1::2] & 15) << 4).astype(np.uint8)
    return np.concatenate([_half(d), high[:, None].view(np.uint8), low, _nibbles(q, 16)], axis=1)


ROUNDED: dict[str, Callable[[Floats], Bytes]] = {
    "q2_k": q2_k, "q3_k": q3_k, "q4_k": q4_k, "q5_k": q5_k, "q6_k": q6_k, "iq4_nl": iq4_nl, "iq4_xs": iq4_xs,
}  # fmt: skip
GRIDS = ("iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")


def _random_grid(name: str, x: Floats) -> Bytes:
    """Blocks of any codes; d is what gives them the spread of x."""
    block_bytes = gguf.GGML_QUANT_SIZES[Kind[name.upper()]][1]
    raw = np.random.default_rng(len(x)).integers(0, 256, (len(x), block_bytes), dtype=np.uint8)

    def put(d: float) -> Bytes:
        bits = int(np.float16(d).view(np.uint16))
        if name == "iq1_m":  # four bits of d on top of each word of scales
            raw[:, 49::2] = raw[:, 49::2] & 15 | np.array([(bits >> 4 * i & 15) << 4 for i in range(4)], np.uint8)
        else:
            raw[:, :2] = [bits & 255, bits >> 8]
        return raw

    spread = float(gguf.dequantize(put(1.0), Kind[name.upper()]).std())
    return put(float(x.std()) / spread)


def encode(name: str, values: Floats) -> Bytes:
    """float32 [rows, k], k whole blocks -> bytes [rows, row bytes]."""
    kind = Kind[name.upper()]
    rows = np.ascontiguousarray(values, np.float32)
    if name in ROUNDED or name in GRIDS:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        blocks = rows.reshape(-1, block)
        raw = ROUNDED[name](blocks) if name in ROUNDED else _random_grid(name, blocks)
        return raw.reshape(len(rows), -1)
    quantized: Bytes = gguf.quants.quantize(rows, kind)
    return quantized.view(np.uint8).reshape(len(rows), -1)


def fallback(name: str) -> str:
    """What rows get that are no whole number of 256, as llama.cpp chooses."""
    small = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
    return small.get(name, "iq4_nl")


def fitting(name: str, k: int) -> str:
    """The format, or what stands in for it for rows of k."""
    return name if k % gguf.GGML_QUANT_SIZES[Kind[name.upper()]][0] == 0 else fallback(name)


def rewrite(source: Path, target: Path, chosen: str | Callable[[str], str]) -> Path:
    """A GGUF file with the metadata and weights of `source`, matrices in another format: one for all, or by name."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, _value(reader.fields["general.architecture"]))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, _value(field), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
            continue
        values = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
        name = fitting(chosen if isinstance(chosen, str) else chosen(tensor.name), values.shape[1])
        writer.add_tensor(tensor.name, encode(name, values), raw_dtype=Kind[name.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _value(field: Any) -> Any:
    return field.contents()
