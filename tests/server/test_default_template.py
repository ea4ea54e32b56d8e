"""A model without a chat template is served with the stated one, and every answer says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from octavo.config import ServerConfig
from octavo.server.app import build_app
from octavo.server.auth import Keys
from octavo.server.health import Health
from octavo.server.metrics import Metrics
from octavo.server.submit import Front
from octavo.start import start_in_process
from octavo.text.prompt import PromptTemplate
from tests import real

HELLO: Any = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}


async def test_the_default_template_is_told(tmp_path: Path) -> None:
    options = {"max_model_len": 256, "kv_cache_memory": "16MiB", "state_dir": str(tmp_path)}
    llm = await start_in_process(str(real.smollm2()), options)
    try:
        front = Front(llm, ("base",), ServerConfig(), Health(lambda: True), Metrics("base"))
        transport = httpx.ASGITransport(app=build_app(front, Keys((), None)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            own = await client.post("/v1/chat/completions", json=HELLO)
            assert own.status_code == 200 and "x-octavo-template" not in own.headers
            llm.renderer = PromptTemplate({}, {})
            for stream in (False, True):
                plain = await client.post("/v1/chat/completions", json={**HELLO, "stream": stream})
                assert plain.status_code == 200 and plain.headers["x-octavo-template"] == "default"
            own_template = {**HELLO, "chat_template": "{{ messages[0].content }}"}
            given = await client.post("/v1/chat/completions", json=own_template)
            assert given.status_code == 200 and "x-octavo-template" not in given.headers
            llm.renderer.close()
            llm.renderer = PromptTemplate({}, {}, allow_default=False)
            refused = await client.post("/v1/chat/completions", json=HELLO)
            assert refused.status_code == 400 and "no chat template" in refused.json()["error"]["message"]
    finally:
        await llm.close()
