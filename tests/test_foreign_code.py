"""Code and pickles that lie beside a model: nothing of them runs, and the model is served."""

import json
import os
import pickle
from pathlib import Path

from octavo.llm import LLM
from octavo.sampling_params import SamplingParams
from tests import tiny

NAMES = {"AutoConfig": "code.Code", "AutoModelForCausalLM": "code.Code", "AutoTokenizer": ["code.Code", None]}


class Payload:
    """Leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._mark),)


def test_code_and_pickles_beside_a_model_are_left_alone(tmp_path: Path) -> None:
    folder, mark = tiny.folder(tmp_path / "model"), tmp_path / "mark"
    for name in ("config", "tokenizer_config", "generation_config", "processor_config"):
        file = folder / f"{name}.json"
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**content, "auto_map": NAMES}))
    for name in ("code.py", "modeling_llama.py", "tokenization_llama.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    with LLM(str(folder), max_model_len=128, cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path)) as llm:
        (output,) = llm.generate([5, 6, 7], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4 and not mark.exists()
    pickle.loads((folder / "training_args.bin").read_bytes())
    assert mark.exists()  # it would have left one
