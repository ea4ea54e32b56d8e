"""A model's own tool calls through every dialect but chat completions: made, streamed, and answered with a result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests import real
from tests.server.live import Live

TEXT = "What is the weather in Paris right now? Use the function."
PARAMETERS: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ABOUT = {"name": "get_weather", "description": "The current weather in a city."}


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    sizes = ["--max-model-len", "1024", "--kv-cache-memory", "64MiB", "--served-model-name", "coder"]
    server = Live(tmp_path_factory.mktemp("coder"), *sizes, model=real.qwen_half_b())
    yield server
    assert server.stop() == 0


def test_anthropic(coder: Live) -> None:
    tool: Any = {**ABOUT, "input_schema": PARAMETERS}
    asked: Any = {"model": "coder", "max_tokens": 64, "tools": [tool], "extra_body": {"temperature": 0}}
    messages: Any = [{"role": "user", "content": TEXT}]
    with anthropic.Anthropic(base_url=coder.url, api_key="x", max_retries=0) as client:
        made = client.messages.create(**asked, messages=messages)
        call = made.content[-1]
        assert made.stop_reason == "tool_use" and call.type == "tool_use" and call.id.startswith("toolu_")
        assert call.name == "get_weather" and "paris" in str(call.input["city"]).lower()
        with client.messages.stream(**asked, messages=messages) as stream:
            streamed = stream.get_final_message().content[-1]
        assert streamed.type == "tool_use" and (streamed.name, streamed.input) == (call.name, call.input)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees and rain"}
        turns = [{"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
        no_more: Any = {"type": "none"}  # this model is fond of calling again
        last = client.messages.create(**asked, messages=[*messages, *turns], tool_choice=no_more)
    assert last.content[0].type == "text" and "18" in last.content[0].text


def test_ollama(coder: Live) -> None:
    tools: Any = [{"type": "function", "function": {**ABOUT, "parameters": PARAMETERS}}]
    messages: Any = [{"role": "user", "content": TEXT}]
    options: Any = {"temperature": 0, "num_predict": 64}
    with ollama.Client(host=coder.url) as client:
        made = client.chat("coder", messages, tools=tools, options=options)
        (call,) = made.message.tool_calls or ()
        assert call.function.name == "get_weather" and "paris" in call.function.arguments["city"].lower()
        parts = list(client.chat("coder", messages, tools=tools, options=options, stream=True))
        calls = [each for part in parts for each in part.message.tool_calls or ()]
        assert [(each.function.name, each.function.arguments) for each in calls] == [
            (call.function.name, call.function.arguments)
        ]
        turns = [made.message, {"role": "tool", "tool_name": "get_weather", "content": "18 degrees and rain"}]
        last = client.chat("coder", [*messages, *turns], options=options)
    assert "18" in (last.message.content or "")


def test_responses(coder: Live) -> None:
    tool: Any = {"type": "function", **ABOUT, "parameters": PARAMETERS}
    asked: Any = {"model": "coder", "temperature": 0, "max_output_tokens": 64, "tools": [tool]}
    with openai.OpenAI(base_url=coder.url + "/v1", api_key="x", max_retries=0) as client:
        made = client.responses.create(**asked, input=TEXT)
        call = made.output[-1]
        assert call.type == "function_call" and call.name == "get_weather" and made.status == "completed"
        assert "paris" in json.loads(call.arguments)["city"].lower() and call.id
        with client.responses.stream(**asked, input=TEXT) as stream:
            deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
            final = stream.get_final_response().output[-1]
        assert final.type == "function_call" and "".join(deltas) == final.arguments == call.arguments
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees and rain"}]
        last = client.responses.create(**asked, input=result, previous_response_id=made.id, tool_choice="none")
    assert "18" in last.output_text
