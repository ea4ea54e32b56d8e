"""KV dtypes: names, and the rounding to bf16 against torch."""

import numpy as np
import pytest
import torch

from octavo.errors import ConfigError
from octavo.quantization.kv import kv_dtype, round_to_bf16


@pytest.mark.parametrize("name, known, size", [("auto", "bf16", 2), ("bfloat16", "bf16", 2), ("fp32", "float32", 4)])
def test_names_and_aliases(name, known, size):
    assert (kv_dtype(name).name, kv_dtype(name).element_bytes) == (known, size)


@pytest.mark.parametrize("name, told", [("f16", "fp16 is not supported"), ("q8_0", "int8 is not"), ("x", "unknown")])
def test_the_others_are_refused_with_the_list(name, told):
    with pytest.raises(ConfigError, match=f"{told}.*supported: bf16, float32"):
        kv_dtype(name)


def test_rounding_equals_torch():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 5_000, dtype=np.uint32) << 16) | 0x8000  # halfway between two bf16 numbers
    values = np.concatenate([bits, ties, [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF]]).astype(np.uint32)
    values = values.view(np.float32)
    finite = ~np.isnan(values)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found = round_to_bf16(values)
    assert np.array_equal(found[finite], expected[finite])
    widened = (found.astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.isnan(widened[~finite]))
