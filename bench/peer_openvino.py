"""OpenVINO GenAI's ContinuousBatchingPipeline on a GGUF file, one generation a line (turns.py).

    OPENVINO_PYTHON peer_openvino.py FILE.gguf THREADS [{"INFERENCE_PRECISION_HINT": "f32", ...}]

Run by the interpreter of an environment with openvino-genai and openvino-tokenizers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai as genai
from turns import Generate, take_turns

VOCAB = 49_000  # ids that every model compared here has
CACHE_GIB = 2


def load() -> tuple[Generate, int]:
    """The pipeline with room for 32 sequences, greedy."""
    path, threads, *rest = sys.argv[1:]
    options = {"INFERENCE_NUM_THREADS": int(threads), **json.loads(rest[0] if rest else "{}")}
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 32
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", options)

    def generate(prompts: Sequence[Sequence[int]], answer: int) -> list[int]:
        config = genai.GenerationConfig(max_new_tokens=answer, ignore_eos=True, do_sample=False)
        ids = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(ids, [config] * len(ids))
        return [len(result.m_generation_ids[0]) for result in results]

    generate([[1] * 128] * 8, 8)
    return generate, VOCAB


if __name__ == "__main__":
    take_turns(load)
