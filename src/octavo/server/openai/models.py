"""What is served, as /v1/models tells it: OpenAI's fields, vLLM's, and those that Anthropic's clients read beside them.
The list in Ollama's shape beside it is what llama.cpp sends as well.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.submit import Front


async def models(request: Request) -> Response:
    """GET /v1/models: every name of the model, the one of answers first."""
    front: Front = request.app.state.front
    short = [{"name": name, "model": name, "capabilities": ["completion"]} for name in front.names]
    listed = [await _model(front, name) for name in front.names]
    body = {
        "object": "list", "data": listed, "models": short, "has_more": False, "first_id": front.names[0],
        "last_id": front.names[-1],
    }  # fmt: skip
    return Response(msgspec.json.encode(body), media_type="application/json")


async def model(request: Request) -> Response:
    """GET /v1/models/{id}; ids may contain / and :."""
    front: Front = request.app.state.front
    name: str = request.path_params["id"]
    front.check_model(name)
    return Response(msgspec.json.encode(await _model(front, name)), media_type="application/json")


async def _model(front: Front, name: str) -> dict[str, object]:
    info, found = front.llm.client.info, await front.shelf.description()
    return {
        "id": name,
        "object": "model",
        "created": front.created,
        "owned_by": "octavo",
        "root": front.model,
        "parent": None,
        "max_model_len": info.max_model_len,
        "permission": [],
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(front.created, UTC).isoformat(),
        "meta": {
            "n_vocab": info.vocab_size,
            "n_ctx": info.max_model_len,
            "n_ctx_train": found.shape.get("context length", info.max_model_len),
            "n_embd": found.shape.get("embedding length"),
            "n_params": found.parameters,
            "size": found.nbytes,
        },
    }
