"""What llama.cpp's tools ask about a server: /props, /slots, /lora-adapters; and /apply-template."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo import __version__
from octavo.errors import Unavailable
from octavo.request import ChatRequest
from octavo.sampling_params import SamplingParams
from octavo.server.conversation import check_conversation
from octavo.server.llamacpp.completion import settings
from octavo.server.llamacpp.schema import DEFAULTS, TEMPLATE, LlamaTemplateBody
from octavo.server.submit import Front


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def apply_template(request: Request) -> Response:
    """The prompt that the chat template makes of a conversation."""
    front: Front = request.app.state.front
    body: LlamaTemplateBody = await front.body(request, TEMPLATE)
    chat = ChatRequest(
        body.messages, front.llm.default_sampling_params(), body.add_generation_prompt is not False,
        chat_template_kwargs=body.chat_template_kwargs or {}, tools=body.tools or (),
    )  # fmt: skip
    check_conversation(chat)
    return _json({"prompt": await front.llm.render(chat)})


async def props(request: Request) -> Response:
    """What the server is and what answers are made with."""
    front: Front = request.app.state.front
    tokenizer, info = front.llm.tokenizer, front.llm.client.info
    params = SamplingParams(**{**DEFAULTS, **front.llm.defaults})
    special = tokenizer.facts.special_tokens
    return _json(
        {
            "default_generation_settings": {
                "id": 0,
                "n_ctx": info.max_model_len,
                "is_processing": False,
                "params": settings(params, -1, front),
            },
            "total_slots": front.shelf.engine.max_num_seqs,
            "model_alias": front.model,
            "model_path": front.shelf.path.name,  # where it lies is not for clients
            "modalities": {"vision": False, "audio": False},
            "chat_template": tokenizer.chat_template or "",
            "bos_token": special.get("bos_token", ""),
            "eos_token": special.get("eos_token", ""),
            "build_info": f"octavo-{__version__}",
            "is_sleeping": False,
        }
    )


async def slots(request: Request) -> Response:
    """The places for requests that are computed at once: how many of them are taken."""
    front: Front = request.app.state.front
    total, taken = front.shelf.engine.max_num_seqs, front.llm.client.open_requests
    if request.query_params.get("fail_on_no_slot") and taken >= total:
        raise Unavailable("no slot is free", retry_after=1.0)
    context, speculates = front.llm.client.info.max_model_len, front.shelf.engine.spec_method != "off"
    made: list[dict[str, Any]] = [
        {"id": number, "n_ctx": context, "speculative": speculates, "is_processing": number < taken}
        for number in range(total)
    ]
    return _json(made)


async def lora_adapters(request: Request) -> Response:
    """The adapters that are loaded: none."""
    return _json([])
