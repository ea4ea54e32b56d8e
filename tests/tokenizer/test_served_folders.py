"""A model whose folder has no tokenizer.json: it is loaded, answers, and its text is the decode of its ids."""

import pathlib

import pytest

from octavo.llm import LLM
from octavo.sampling_params import SamplingParams
from tests import tiny
from tests.tokenizer.test_hostile_files import sentencepiece_model, tekken


@pytest.mark.parametrize("kind", ["tekken.json", "tokenizer.model"])
def test_generation(kind: str, tmp_path: pathlib.Path) -> None:
    config = tiny.config(vocab_size=928)
    folder = tiny.folder(tmp_path / "model", config)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / kind).write_bytes(tekken() if kind == "tekken.json" else sentencepiece_model("bpe"))
    with LLM(str(folder), max_model_len=128, cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path)) as llm:
        (output,) = llm.generate("Hello world", SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
        tokenizer = llm.get_tokenizer()
        assert list(output.prompt_token_ids or ()) == tokenizer.encode("Hello world", add_special_tokens=True)
        answer = output.outputs[0]
        whole = tokenizer.decode([*tokenizer.encode("Hello world"), *answer.token_ids])
        assert whole == tokenizer.decode(tokenizer.encode("Hello world")) + answer.text
    assert len(list((tmp_path / "cache").rglob("tokenizer.json"))) == 1
