"""A model without a chat template is served with the stated one, and every answer says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from octavo.cli.serve import template_line
from octavo.config import EngineConfig, ServerConfig
from octavo.server.app import build_app
from octavo.server.auth import Keys
from octavo.server.health import Health
from octavo.server.metrics import Metrics
from octavo.server.submit import Front
from octavo.shelf import Shelf
from octavo.start import start_in_process
from octavo.text.conversation import Conversations
from octavo.text.prompt import PromptTemplate
from tests import real

HELLO: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}


async def asked_with_documents_and_tools(client: httpx.AsyncClient) -> None:
    """What a template is given beside the messages."""
    template = "{{ documents[0].text }} {{ tools[0].function.name }}"
    body = {"messages": HELLO["messages"], "documents": [{"title": "t", "text": "Paris"}], "chat_template": template}
    tool = {"type": "function", "function": {"name": "weather"}}
    ids = (await client.post("/tokenize", json={**body, "tools": [tool]})).json()["tokens"]
    text = (await client.post("/detokenize", json={"tokens": ids})).json()["prompt"]
    assert text == "Paris weather"
    without = {**HELLO, **body, "chat_template": "{{ documents[0].title }}: {{ documents[0].text }}"}
    answer = await client.post("/v1/chat/completions", json=without)
    counted = (await client.post("/tokenize", json={"prompt": "t: Paris"})).json()["count"]
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == counted


async def test_the_default_template_is_told(tmp_path: Path) -> None:
    options = {"max_model_len": 256, "kv_cache_memory": "16MiB", "state_dir": str(tmp_path)}
    llm = await start_in_process(str(real.smollm2()), options)
    try:
        shelf = Shelf(real.smollm2(), EngineConfig())
        front = Front(llm, ("base",), ServerConfig(), Health(lambda: True), Metrics("base"), shelf)
        transport = httpx.ASGITransport(app=build_app(front, Keys((), None)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert template_line(llm.renderer) == [
                "chat      functions: told in words, the template has no place for them · reasoning: none"
            ]
            await asked_with_documents_and_tools(client)
            own = await client.post("/v1/chat/completions", json=HELLO)
            assert own.status_code == 200 and "x-octavo-template" not in own.headers
            llm.renderer.close()
            llm.renderer = Conversations(PromptTemplate({}, {}))
            for stream in (False, True):
                plain = await client.post("/v1/chat/completions", json={**HELLO, "stream": stream})
                assert plain.status_code == 200 and plain.headers["x-octavo-template"] == "default"
            own_template = {**HELLO, "chat_template": "{{ messages[0].content }}"}
            given = await client.post("/v1/chat/completions", json=own_template)
            assert given.status_code == 200 and "x-octavo-template" not in given.headers
            assert [line.split()[0] for line in template_line(llm.renderer)] == ["template"]
            llm.renderer.close()
            llm.renderer = Conversations(PromptTemplate({}, {}, allow_default=False))
            refused = await client.post("/v1/chat/completions", json=HELLO)
            assert refused.status_code == 400 and "no chat template" in refused.json()["error"]["message"]
    finally:
        await llm.close()
