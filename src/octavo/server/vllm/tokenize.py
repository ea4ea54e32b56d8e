"""POST /tokenize and /detokenize: vLLM's dialect (prompt, messages), llama.cpp's (content) and TGI's (inputs), told
apart by the key.

The answers to the first two are supersets of both; TGI's is a list.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import InvalidRequest
from octavo.request import ChatRequest
from octavo.server.limits import MAX_MESSAGES, check_count, check_depth
from octavo.server.submit import Front


class TokenizeBody(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    content: str | None = None
    inputs: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None  # llama.cpp's name
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None


class DetokenizeBody(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


_TOKENIZE = msgspec.json.Decoder(TokenizeBody)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeBody)


async def tokenize(request: Request) -> Response:
    """Ids of a text or of a conversation as the model would read it."""
    front: Front = request.app.state.front
    body: TokenizeBody = await front.body(request, _TOKENIZE)
    front.check_model(body.model)
    ids = await _ids(front, body)
    tokenizer = front.llm.tokenizer
    if body.inputs is not None:
        return Response(msgspec.json.encode(_places(tokenizer.token_bytes, ids)), media_type="application/json")
    made: dict[str, Any] = {"count": len(ids), "max_model_len": front.llm.client.info.max_model_len, "tokens": ids}
    if body.return_token_strs:
        made["token_strs"] = [tokenizer.id_to_token(id_) or "" for id_ in ids]
    if body.with_pieces:
        made["tokens"] = [{"id": id_, "piece": _piece(tokenizer.token_bytes(id_))} for id_ in ids]
    return Response(msgspec.json.encode(made), media_type="application/json")


async def _ids(front: Front, body: TokenizeBody) -> list[int]:
    tokenizer = front.llm.tokenizer
    for name in ("prompt", "content", "inputs"):
        front.check_length(getattr(body, name) or "", name)
    if body.messages is not None:
        check_count(len(body.messages), MAX_MESSAGES, "messages", "messages")
        check_depth(body.messages, "messages")
        for name in ("chat_template_kwargs", "tools", "documents"):
            check_depth(getattr(body, name), name)
        conversation = ChatRequest(
            body.messages, front.llm.default_sampling_params(), body.add_generation_prompt is not False,
            bool(body.continue_final_message), body.chat_template, body.chat_template_kwargs or {},
            body.tools or (), body.documents or (),
        )  # fmt: skip
        text = await front.llm.render(conversation)
        front.check_length(text, "messages")
        return await asyncio.to_thread(tokenizer.encode, text, bool(body.add_special_tokens))
    if body.prompt is not None:
        return await asyncio.to_thread(tokenizer.encode, body.prompt, body.add_special_tokens is not False)
    if body.content is not None:
        special = body.parse_special is not False
        return await asyncio.to_thread(tokenizer.encode, body.content, bool(body.add_special), special)
    if body.inputs is not None:
        return await asyncio.to_thread(tokenizer.encode, body.inputs, body.add_special_tokens is not False)
    raise InvalidRequest("Give prompt, messages, content or inputs.", param="prompt")


def _places(token_bytes: Callable[[int], bytes], ids: list[int]) -> list[dict[str, Any]]:
    """TGI's shape: where each token stands in the text, in characters."""
    made, start, decoder = [], 0, codecs.getincrementaldecoder("utf-8")("ignore")
    for id_ in ids:
        piece = token_bytes(id_)
        stop = start + len(decoder.decode(piece))
        made.append({"id": id_, "text": piece.decode("utf-8", "replace"), "start": start, "stop": stop})
        start = stop
    return made


def _piece(data: bytes) -> str | list[int]:
    """Text, or bytes where a token is a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(request: Request) -> Response:
    """The text of ids, under both names."""
    front: Front = request.app.state.front
    body: DetokenizeBody = await front.body(request, _DETOKENIZE)
    front.check_model(body.model)
    size = front.llm.client.info.vocab_size
    if body.tokens and (min(body.tokens) < 0 or max(body.tokens) >= size):
        raise InvalidRequest(f"tokens has an id outside of 0 to {size - 1}.", param="tokens")
    text = await asyncio.to_thread(front.llm.tokenizer.decode, body.tokens, False)
    return Response(msgspec.json.encode({"prompt": text, "content": text}), media_type="application/json")
