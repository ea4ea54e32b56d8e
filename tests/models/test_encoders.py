"""Embeddings and scores against transformers in float32, on the reference and on the native engine.

sentence-transformers' embedding is transformers' last hidden state, pooled and normalized as its modules.json says. The
bounds are 1e-4 for embeddings and 1e-3 for scores. A text has the same bits alone and among others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from octavo import LLM
from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.checkpoints.pooling import pooling_of
from octavo.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from octavo.execution.reference import ReferenceModel, Rows, load_weights
from octavo.models.binding import bind
from octavo.models.registry import build
from octavo.program.trace import trace, weights_of
from tests import real, tiny

EMBEDDING_BOUND, SCORE_BOUND = 1e-4, 1e-3
TEXTS = (
    "Hello world.", "x", "Ein Satz über Straßen und Öl — 東京.", "The quick brown fox jumps over the lazy dog. " * 12,
)  # fmt: skip
MEMORY: dict[str, Any] = {"threads": 2, "kv_cache_memory": 8 << 20}
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB_SIZE, "hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "max_position_embeddings": 200, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
# model_type -> changes of SIZES; heads of 16 and of 48
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"type_vocab_size": 2},
    "roberta": {"type_vocab_size": 1, "hidden_size": 144, "num_attention_heads": 3},
    "xlm-roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def folder(path: Path, model_type: str, head: Any = AutoModel, **changes: Any) -> Path:
    """A random model of a real configuration class, with the byte tokenizer of tests/tiny.py."""
    config = CONFIG_MAPPING[model_type](**{**SIZES, **ENCODERS.get(model_type, {}), **changes})
    torch.manual_seed(0)
    model = head.from_config(config)
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    model.eval().save_pretrained(path)
    tiny.tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return path


def hidden(path: Path, ids: list[int]) -> torch.Tensor:
    """transformers' last hidden state [tokens, width]."""
    with torch.no_grad():
        found = AutoModel.from_pretrained(path, attn_implementation="eager").eval()(torch.tensor([ids]))
    state: torch.Tensor = found.last_hidden_state[0]
    return state


def pooled(state: torch.Tensor, kind: str) -> NDArray[np.float32]:
    vector = {"mean": state.mean(0), "cls": state[0], "last": state[-1]}[kind]
    unit: NDArray[np.float32] = (vector / vector.norm()).numpy()
    return unit


def reference(path: Path, runs: list[Rows], **options: str) -> tuple[ReferenceModel, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    model = build(checkpoint, positions=200, pooling=pooling_of(checkpoint, **options))
    programs = trace(model.functions)
    weights = load_weights(checkpoint, bind(checkpoint, model, weights_of(programs)))
    made = ReferenceModel(programs, weights, positions=200, slots=8)
    with torch.no_grad():
        return made, made.hidden(runs)


def lists(counts: tuple[int, ...] = (1, 2, 17, 66, 150)) -> list[list[int]]:
    source = np.random.default_rng(5)
    return [source.integers(3, 262, count).tolist() for count in counts]


def test_minilm_beside_sentence_transformers_itself() -> None:
    """Padded batches of its own there. Skipped where it is not installed: it takes scikit-learn and scipy with it."""
    theirs = pytest.importorskip("sentence_transformers")
    words = ["harbour", "fog", "tide", "boat", "Öl", "東京", "rope_theta", "!=", "10000.0;", "return", "low"]
    texts = [*TEXTS, *(" ".join(words[k % 9 :] * (k % 13 + 1)) for k in range(40))]
    wanted = theirs.SentenceTransformer(str(real.minilm()), device="cpu").encode(texts, normalize_embeddings=True)
    llm = LLM(str(real.minilm()), threads=2)
    try:
        assert np.abs(np.stack(llm.embed(texts)) - wanted).max() <= EMBEDDING_BOUND
    finally:
        llm.close()


def test_minilm_is_sentence_transformers() -> None:
    """The real model; the native engine, alone and together; the reference on the same ids."""
    path = real.minilm()
    llm = LLM(str(path), threads=2)
    try:
        together = llm.embed(TEXTS)
        tokenizer = AutoTokenizer.from_pretrained(path)
        for text, found in zip(TEXTS, together, strict=True):
            ids = tokenizer(text)["input_ids"]
            wanted = pooled(hidden(path, ids), "mean")
            assert np.abs(found - wanted).max() <= EMBEDDING_BOUND
            assert np.abs(pooled(reference(path, [Rows(0, 0, ids)])[1], "mean") - wanted).max() <= EMBEDDING_BOUND
            assert (llm.embed([text])[0].view(np.uint32) == found.view(np.uint32)).all()
        order = [index for index, _ in llm.rank("an animal leaps", TEXTS)]
        assert order[0] == 3
        with pytest.raises(ContextLengthExceeded):
            llm.embed("word " * 256)  # max_seq_length is 256, though the model could take 512
        short = llm.embed(["one two three"], dimensions=10)[0]
        full = llm.embed(["one two three"])[0][:10]
        np.testing.assert_allclose(short, full / np.linalg.norm(full), atol=1e-6)
        with pytest.raises(InvalidRequest, match="gives vectors, not text"):
            llm.generate("a")
    finally:
        llm.close()


@pytest.mark.parametrize("kind", ["mean", "cls", "last"])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_random_encoders(model_type: str, kind: str, tmp_path: Path) -> None:
    path, prompts = folder(tmp_path, model_type), lists()
    state = reference(path, [Rows(slot, 0, ids) for slot, ids in enumerate(prompts)], pooling=kind)[1]
    llm = LLM(str(path), pooling=kind, max_num_batched_tokens=200, **MEMORY)
    try:
        found = llm.embed(prompts)
        for ids, vector, row in zip(prompts, found, state.split([len(ids) for ids in prompts]), strict=True):
            wanted = pooled(hidden(path, ids), kind)
            assert np.abs(vector - wanted).max() <= EMBEDDING_BOUND
            assert np.abs(pooled(row, kind) - wanted).max() <= EMBEDDING_BOUND
            np.testing.assert_array_equal(llm.embed(ids)[0].view(np.uint32), vector.view(np.uint32))
        longest = 200 - 2 * (model_type != "bert")
        assert len(llm.embed([5] * longest)) == 1
        with pytest.raises(ContextLengthExceeded):
            llm.embed([5] * (longest + 1))
    finally:
        llm.close()


def pair_tokenizer(path: Path) -> None:
    """A tokenizer that puts id 0 before a pair, id 2 behind each text, and gives the second its own type."""
    from tokenizers.processors import TemplateProcessing

    made = tiny.tokenizer()
    made.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", pair="<|endoftext|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )  # fmt: skip
    made.save(str(path / "tokenizer.json"))


@pytest.mark.parametrize("model_type", ENCODERS)
def test_rerankers(model_type: str, tmp_path: Path) -> None:
    """A classifier of one label: the sigmoid of what transformers gives, alone and together."""
    path = folder(tmp_path, model_type, AutoModelForSequenceClassification, num_labels=1)
    pair_tokenizer(path)
    query, documents = "what is a fox", ["an animal", "x", "a long story of foxes " * 5]
    theirs, tokenizer = AutoModelForSequenceClassification.from_pretrained(path).eval(), tiny_pair(path)
    llm = LLM(str(path), **MEMORY)
    try:
        found = llm.score(query, documents)
        for document, value in zip(documents, found, strict=True):
            ids, parts = tokenizer(query, document)
            if model_type != "bert":
                parts = [0] * len(ids)
            with torch.no_grad():
                wanted = theirs(torch.tensor([ids]), token_type_ids=torch.tensor([parts])).logits[0]
            second = parts.index(1) if 1 in parts else None
            made, _ = reference(path, [Rows(0, 0, ids, second)])
            assert abs((made.scores([Rows(0, 0, ids, second)], [0])[0] - wanted).item()) <= SCORE_BOUND
            assert abs(value - torch.sigmoid(wanted).item()) <= SCORE_BOUND
            assert llm.score(query, document) == [value]
        assert llm.rank(query, documents, top_n=2) == sorted(enumerate(found), key=lambda each: -each[1])[:2]
        with pytest.raises(InvalidRequest, match="gives no embeddings"):
            llm.embed("a")
    finally:
        llm.close()


def tiny_pair(path: Path) -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(path / "tokenizer.json"))

    def encode(first: str, second: str) -> tuple[list[int], list[int]]:
        found = made.encode(first, second)
        return found.ids, found.type_ids

    return encode


def gguf_of(path: Path, file: Path, quantization: str) -> Path:
    """A BERT folder with the names of the gguf package and the keys of llama.cpp's convert_hf_to_gguf.py."""
    config = {**SIZES, "head_dim": 16, "num_key_value_heads": 6, "rms_norm_eps": 1.0, "rope_theta": 10000.0}
    writer = gguf.GGUFWriter(str(file), "bert")
    tiny.write_metadata(writer, config)
    writer.add_layer_norm_eps(1e-12)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_causal_attention(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, SIZES["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[quantization.upper()]
    for name, parameter in AutoModel.from_pretrained(path).named_parameters():
        if name.startswith("pooler."):
            continue
        found, values = names.get_name(name, try_suffixes=(".weight", ".bias")), parameter.detach().numpy()
        assert found is not None
        if values.ndim < 2 or values.shape[1] % 32 or quantization == "f32":
            writer.add_tensor(found, values)
        else:
            writer.add_tensor(found, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gguf_holds_the_same_model(tmp_path: Path) -> None:
    """The same bits from float32; nearly the same from Q8_0, and a text's bits alone are those among others."""
    path, prompts = folder(tmp_path / "folder", "bert"), lists()
    files = {kind: gguf_of(path, tmp_path / f"{kind}.gguf", kind) for kind in ("f32", "q8_0")}
    made = {}
    for name, model, options in (("folder", path, {"pooling": "mean"}), *((k, f, {}) for k, f in files.items())):
        llm = LLM(str(model), **options, **MEMORY)
        try:
            made[name] = llm.embed(prompts)
            np.testing.assert_array_equal(llm.embed(prompts[2])[0].view(np.uint32), made[name][2].view(np.uint32))
        finally:
            llm.close()
    for one, other, rounded in zip(*made.values(), strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))
        assert one @ rounded > 0.99  # wide random weights: a trained model is nearer


DECODER = {"head_dim": 16, "num_key_value_heads": 2, "num_attention_heads": 4, "hidden_size": 64}


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_decoders(kind: str, tmp_path: Path) -> None:
    """Qwen3 as it is saved for embeddings (no head, no `model.`) and with its head; chunks change no bit."""
    bare = folder(tmp_path / "bare", "qwen3", **DECODER)
    (bare / "modules.json").write_text(json.dumps([
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]))  # fmt: skip
    (bare / "1_Pooling").mkdir()
    key = {"mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}[kind]
    (bare / "1_Pooling" / "config.json").write_text(json.dumps({key: True, "pooling_mode_cls_token": False}))
    headed = folder(tmp_path / "headed", "qwen3", AutoModelForCausalLM, **DECODER)
    prompts = lists()
    for path, options in ((bare, {}), (headed, {"pooling": kind})):
        wanted = [pooled(hidden(path, ids), kind) for ids in prompts]
        made = {}
        for rows in (32, 200):
            llm = LLM(str(path), kv_cache_dtype="float32", max_num_batched_tokens=rows, max_num_seqs=4,
                      **options, **MEMORY)  # fmt: skip
            try:
                made[rows] = llm.embed(prompts)
                again = llm.embed(prompts[-1])[0]  # its prefix may come from the cache
            finally:
                llm.close()
            np.testing.assert_array_equal(again, made[rows][-1])
            for found, want in zip(made[rows], wanted, strict=True):
                assert np.abs(found - want).max() <= EMBEDDING_BOUND
        for one, other in zip(made[32], made[200], strict=True):
            np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def test_a_decoder_that_classifies(tmp_path: Path) -> None:
    """Qwen3ForSequenceClassification: its last row through `score`."""
    path = folder(tmp_path, "qwen3", AutoModelForSequenceClassification, num_labels=1, **DECODER)
    pair_tokenizer(path)
    ids, _ = tiny_pair(path)("a query", "a document of some words")
    with torch.no_grad():
        wanted = AutoModelForSequenceClassification.from_pretrained(path).eval()(torch.tensor([ids])).logits[0, 0]
    llm = LLM(str(path), kv_cache_dtype="float32", max_num_batched_tokens=32, **MEMORY)
    try:
        assert abs(llm.score("a query", "a document of some words")[0] - torch.sigmoid(wanted).item()) <= SCORE_BOUND
    finally:
        llm.close()


def test_what_a_model_cannot_give_is_told(tmp_path: Path) -> None:
    """Each refusal names the option or says what to do."""
    encoder, decoder = folder(tmp_path / "bert", "bert"), folder(tmp_path / "qwen3", "qwen3", **DECODER)
    with pytest.raises(ConfigError, match="--pooling mean, cls or last"):
        LLM(str(encoder), **MEMORY)
    with pytest.raises(ConfigError, match="--task generate: .* is an encoder"):
        LLM(str(encoder), task="generate", **MEMORY)
    with pytest.raises(ConfigError, match="--pooling mean, cls or last"):
        LLM(str(decoder), task="embed", **MEMORY)
    with pytest.raises(ConfigError, match="--pooling cls"):
        LLM(str(decoder), pooling="cls", **MEMORY)
    with pytest.raises(ConfigError, match="--pooling rank: .* has no classification head"):
        LLM(str(encoder), pooling="rank", **MEMORY)
