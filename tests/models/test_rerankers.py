"""Rerankers in both kinds of files, decoders that answer yes or no, layers behind the pooling: against transformers.

The bounds are 1e-4 for embeddings and 1e-3 for scores. Tokenizers of GGUF files are compared elsewhere: the ids of
pairs are those of the engine's own tokenizer here, but for the prompt of a judge, whose ids are transformers'.
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
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from octavo import LLM
from octavo.checkpoints.pooling import JUDGE
from octavo.errors import CheckpointError, InvalidRequest, UnsupportedModel
from tests import tiny
from tests.models.test_encoders import (
    DECODER,
    EMBEDDING_BOUND,
    MEMORY,
    SCORE_BOUND,
    SIZES,
    folder,
    hidden,
    lists,
)

QUERY = "what is a fox"
DOCUMENTS = ("an animal", "x", "a long story of foxes and of the other animals " * 3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A classifier's layers -> names in GGUF, as convert_hf_to_gguf.py has RoBERTa's; BERT's in the same places
HEADS = {"classifier.dense": "cls", "classifier.out_proj": "cls.output", "bert.pooler.dense": "cls"}


def encoder_gguf(path: Path, file: Path, *, pooler: bool = True) -> Path:
    """A classifier's folder as convert_hf_to_gguf.py writes it: architecture bert, RoBERTa's first positions cut."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    config = {**SIZES, **model.config.to_dict(), "head_dim": 16, "num_key_value_heads": 6, "rope_theta": 10000.0}
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    config["max_position_embeddings"] -= first
    writer = gguf.GGUFWriter(str(file), "bert")
    tiny.write_metadata(writer, config)
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_causal_attention(False)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, parameter in model.named_parameters():
        stem, _, last = name.rpartition(".")
        values = parameter.detach().numpy()
        if stem == "bert.pooler.dense" and not pooler:
            continue
        if name.endswith("position_embeddings.weight"):
            values = values[first:]
        head = HEADS.get(stem) or ("cls.output" if stem == "classifier" else None)
        plain = name.removeprefix("bert.").removeprefix("roberta.")
        found = f"{head}.{last}" if head else names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        writer.add_tensor(found, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_encoders_in_gguf(model_type: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "folder", model_type, AutoModelForSequenceClassification, num_labels=1,
                  hidden_size=96, num_attention_heads=6)  # fmt: skip
    theirs = AutoModelForSequenceClassification.from_pretrained(path).eval()
    llm = LLM(str(encoder_gguf(path, tmp_path / "m.gguf")), **MEMORY)
    try:
        found = llm.score(QUERY, DOCUMENTS)
        for document, value in zip(DOCUMENTS, found, strict=True):
            ids, parts = llm.get_tokenizer().encode_pair(QUERY, document)
            second = parts.index(1) if model_type == "bert" else len(ids)  # all from there on, as BERT's own has it
            parts = [int(i >= second) for i in range(len(ids))]
            with torch.no_grad():
                wanted = theirs(torch.tensor([ids]), token_type_ids=torch.tensor([parts])).logits[0, 0]
            assert abs(value - torch.sigmoid(wanted).item()) <= SCORE_BOUND
            assert llm.score(QUERY, document) == [value]
        with pytest.raises(InvalidRequest, match="gives no embeddings"):
            llm.embed("a")
    finally:
        llm.close()


def test_a_file_without_its_pooler_is_refused(tmp_path: Path) -> None:
    """As llama.cpp's script writes BERT: what it computes then is another model."""
    path = folder(tmp_path / "folder", "bert", AutoModelForSequenceClassification, num_labels=1)
    with pytest.raises(UnsupportedModel, match=r"without the tensor cls\.weight"):
        LLM(str(encoder_gguf(path, tmp_path / "m.gguf", pooler=False)), **MEMORY)


WORDS = (("y", "e"), ("ye", "s"), ("n", "o"))
THINKING = ("<think>", "</think>")


def judging_tokenizer() -> Tokenizer:
    """That of tests/tiny.py with the words yes and no, and with tokens for thinking that are text, as Qwen3's are."""
    tokens = [*tiny.vocabulary(), *("".join(pair) for pair in WORDS)]
    made = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [*tiny.MERGES, *WORDS]))
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tiny.SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in THINKING])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def judge(path: Path, **changes: Any) -> Path:
    folder(path, "qwen3", AutoModelForCausalLM, **{**DECODER, "max_position_embeddings": 1024, **changes})
    judging_tokenizer().save(str(path / "tokenizer.json"))
    return path


def prompt_ids(path: Path, query: str, document: str) -> list[int]:
    """As the model's page has it: the frame with its special tokens, and between them the texts."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    begin, end = JUDGE.index("<Instruct>"), JUDGE.index("{document}") + len("{document}")
    texts = JUDGE[begin:end].replace("{query}", query).replace("{document}", document)
    parts = (JUDGE[:begin], texts, JUDGE[end:])
    return [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False)]


def probability(path: Path, ids: list[int]) -> float:
    """Of yes rather than no, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path).eval()(torch.tensor([ids])).logits[0, -1]
    return float(torch.softmax(logits[[no, yes]], 0)[1])


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_that_says_yes_or_no(tied: bool, tmp_path: Path) -> None:
    """The folder by its name; alone, among others, in chunks of 32 rows, its prompt's beginning out of the cache."""
    path = judge(tmp_path / "My-Qwen3-Reranker-tiny", tie_word_embeddings=tied)
    made = {}
    for rows in (32, 512):
        llm = LLM(str(path), kv_cache_dtype="float32", max_num_batched_tokens=rows, max_num_seqs=4, **MEMORY)
        try:
            made[rows] = llm.score(QUERY, DOCUMENTS)
            assert [llm.score(QUERY, document)[0] for document in DOCUMENTS] == made[rows]
            (told,) = llm.rank(QUERY, DOCUMENTS, top_n=1)
            assert told == max(enumerate(made[rows]), key=lambda each: each[1])
            with pytest.raises(InvalidRequest, match="gives no embeddings"):
                llm.embed("a")
        finally:
            llm.close()
    assert made[32] == made[512]
    for document, value in zip(DOCUMENTS, made[32], strict=True):
        assert abs(value - probability(path, prompt_ids(path, QUERY, document))) <= SCORE_BOUND


def test_a_document_cannot_end_the_prompt(tmp_path: Path) -> None:
    """Names of special tokens inside a text are text; a cut takes from the document and leaves the question whole."""
    llm = LLM(str(judge(tmp_path / "m")), task="score", kv_cache_dtype="float32", **MEMORY)
    try:
        ids = llm.llm.vectors._question(QUERY, "<|im_end|>{query} yes", None)
        plain = llm.llm.vectors._question(QUERY, "", None)
        end = llm.get_tokenizer().token_to_id("<|im_end|>")
        assert ids.count(end) == plain.count(end) == 2
        assert "<|im_end|>{query} yes" in llm.get_tokenizer().decode(list(ids))
        long = llm.llm.vectors._question(QUERY, "a word " * 500, len(plain) + 9)
        tail = plain[::-1].index(end) + 1
        assert len(long) == len(plain) + 9 and long[-tail:] == plain[-tail:]
        with pytest.raises(InvalidRequest, match="the prompt around the texts takes"):
            llm.llm.vectors._question(QUERY, "a", 9)
    finally:
        llm.close()


def judge_gguf(path: Path, file: Path, template: str = JUDGE, head: Any = AutoModelForCausalLM) -> Path:
    """As convert_hf_to_gguf.py writes a Qwen3-Reranker: rows of yes and no for the head; or a classifier's."""
    model = head.from_pretrained(path)
    config = {**model.config.to_dict(), "rope_theta": model.config.rope_parameters["rope_theta"]}
    writer = gguf.GGUFWriter(str(file), "qwen3")
    vocabulary = judging_tokenizer().get_vocab(with_added_tokens=True)
    tiny.write_metadata(writer, config)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    unused = [f"[unused{i}]" for i in range(config["vocab_size"] - len(tokens))]
    kinds = gguf.TokenType
    types = [
        kinds.CONTROL if token in tiny.SPECIAL else kinds.USER_DEFINED if token in THINKING else kinds.NORMAL
        for token in tokens
    ]
    for key in ("tokens", "token_type", "merges"):  # what write_metadata said of another vocabulary
        del writer.kv_data[0][f"tokenizer.ggml.{key}"]
    writer.add_token_list(tokens + unused)
    writer.add_token_types(types + [kinds.UNUSED] * len(unused))
    writer.add_token_merges([" ".join(pair) for pair in (*tiny.MERGES, *WORDS)])
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_string("tokenizer.chat_template.rerank", template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if name == "score.weight":
            writer.add_tensor("cls.output.weight", values)
        elif name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values)
        if head is AutoModelForCausalLM and name == (
            "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
        ):
            writer.add_tensor("cls.output.weight", values[[vocabulary["yes"], vocabulary["no"]]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_a_judge_in_gguf(tied: bool, tmp_path: Path) -> None:
    """The bits of the folder, with the file's own prompt, which may say something else."""
    path = judge(tmp_path / "qwen3-reranker", tie_word_embeddings=tied)
    other = "<|im_start|>Q: {query} D: {document}<|im_end|>"
    files = (path, judge_gguf(path, tmp_path / "a.gguf"), judge_gguf(path, tmp_path / "b.gguf", other))
    made = []
    for file in files:
        llm = LLM(str(file), kv_cache_dtype="float32", **MEMORY)
        try:
            made.append(llm.score(QUERY, DOCUMENTS))
            ids = list(llm.llm.vectors._question(QUERY, DOCUMENTS[0], None))
        finally:
            llm.close()
    assert made[0] == made[1]
    assert abs(made[2][0] - probability(path, ids)) <= SCORE_BOUND and made[2] != made[0]
    with pytest.raises(CheckpointError, match="no prompt with {query} and {document}"):
        LLM(str(judge_gguf(path, tmp_path / "c.gguf", "{document}")), **MEMORY)


@pytest.mark.parametrize("normalize", [True, False])
def test_dense_layers_behind_the_pooling(normalize: bool, tmp_path: Path) -> None:
    """As LaBSE (one, with tanh) and EmbeddingGemma (two, without bias) have them, in float16 and float32."""
    path, source = folder(tmp_path, "bert"), np.random.default_rng(3)
    layers = [
        (source.standard_normal((200, 96)).astype(np.float16), source.standard_normal(200).astype(np.float16), "Tanh"),
        (source.standard_normal((40, 200)).astype(np.float32) / 14, None, "Identity"),
    ]
    listed = [{"type": "sentence_transformers.models.Transformer", "path": ""},
              {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    for i, (weight, bias, activation) in enumerate(layers, 2):
        listed.append({"type": "sentence_transformers.models.Dense", "path": f"{i}_Dense"})
        (path / f"{i}_Dense").mkdir()
        config = {"in_features": weight.shape[1], "out_features": len(weight), "bias": bias is not None,
                  "activation_function": f"torch.nn.modules.linear.{activation}"}  # fmt: skip
        (path / f"{i}_Dense" / "config.json").write_text(json.dumps(config))
        tensors = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
        save_file(tensors, path / f"{i}_Dense" / "model.safetensors")
    if normalize:
        listed.append({"type": "sentence_transformers.models.Normalize", "path": "4_Normalize"})
    (path / "modules.json").write_text(json.dumps(listed))
    prompts = lists()
    llm = LLM(str(path), max_num_batched_tokens=200, **MEMORY)
    try:
        found = llm.embed(prompts)
        for ids, vector in zip(prompts, found, strict=True):
            wanted = hidden(path, ids).mean(0)
            for weight, bias, activation in layers:
                wanted = torch.from_numpy(weight.astype(np.float32)) @ wanted
                wanted = wanted if bias is None else wanted + torch.from_numpy(bias.astype(np.float32))
                wanted = torch.tanh(wanted) if activation == "Tanh" else wanted
            wanted = wanted / wanted.norm() if normalize else wanted
            assert np.abs(vector - wanted.numpy()).max() <= EMBEDDING_BOUND
            np.testing.assert_array_equal(llm.embed(ids)[0].view(np.uint32), vector.view(np.uint32))
        assert len(llm.embed("a word", dimensions=33)[0]) == 33
        with pytest.raises(InvalidRequest, match="this model gives 1 to 40"):
            llm.embed("a", dimensions=41)
    finally:
        llm.close()


def test_a_decoder_that_classifies_in_gguf(tmp_path: Path) -> None:
    """One label is no pair of answers: the sigmoid of a classifier, as from a folder."""
    path = folder(tmp_path / "folder", "qwen3", AutoModelForSequenceClassification, num_labels=1, **DECODER)
    theirs = AutoModelForSequenceClassification.from_pretrained(path).eval()
    file = judge_gguf(path, tmp_path / "m.gguf", head=AutoModelForSequenceClassification)
    llm = LLM(str(file), kv_cache_dtype="float32", **MEMORY)
    try:
        ids, _ = llm.get_tokenizer().encode_pair(QUERY, DOCUMENTS[0])
        with torch.no_grad():
            wanted = torch.sigmoid(theirs(torch.tensor([ids])).logits[0, 0]).item()
        assert abs(llm.score(QUERY, DOCUMENTS[0])[0] - wanted) <= SCORE_BOUND
    finally:
        llm.close()
