"""What operators of vLLM ask: /load, /reset_prefix_cache, /tokenizer_info; and LM Studio's list of models."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.submit import Front


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def load(request: Request) -> Response:
    """How many requests are under way."""
    front: Front = request.app.state.front
    return _json({"server_load": front.llm.client.open_requests})


async def reset_prefix_cache(request: Request) -> Response:
    """Forget every prefix; what runs goes on."""
    front: Front = request.app.state.front
    await front.llm.client.reset_prefix_cache()
    return Response(b"")


async def tokenizer_info(request: Request) -> Response:
    """The tokenizer's special tokens and chat template, as its configuration file names them."""
    front: Front = request.app.state.front
    tokenizer = front.llm.tokenizer
    made: dict[str, Any] = {
        **tokenizer.facts.special_tokens,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.adds_bos,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_ids[0] if tokenizer.eos_ids else None,
        "model_max_length": front.llm.client.info.max_model_len,
        "vocab_size": tokenizer.vocab_size,
        "chat_template": tokenizer.chat_template,
    }
    return _json(made)


async def studio_models(request: Request) -> Response:
    """What is served, as LM Studio tells it: clients read the loaded context length."""
    front: Front = request.app.state.front
    return _json({"object": "list", "data": [await _studio(front, name) for name in front.names]})


async def studio_model(request: Request) -> Response:
    """One of the names."""
    front: Front = request.app.state.front
    name: str = request.path_params["id"]
    front.check_model(name)
    return _json(await _studio(front, name))


async def _studio(front: Front, name: str) -> dict[str, Any]:
    found, info = await front.shelf.description(), front.llm.client.info
    return {
        "id": name,
        "object": "model",
        "type": "embeddings" if info.vector else "llm",
        "publisher": name.partition("/")[0] if "/" in name else "octavo",
        "arch": found.architecture,
        "compatibility_type": found.kind,
        "quantization": found.quantization,
        "state": "loaded",
        "max_context_length": found.shape.get("context length", info.max_model_len),
        "loaded_context_length": info.max_model_len,
    }
