"""pydantic-ai: an agent over chat completions and one over Anthropic's messages, with a body and a stream."""

from checks import MODEL, URL, check
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS = {"max_tokens": 16}


def openai_model():
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL + "/v1", api_key="none"))


@check
def chat():
    made = Agent(openai_model(), model_settings=SETTINGS).run_sync("Say hello.")
    assert made.output


@check
async def chat_stream():
    async with Agent(openai_model(), model_settings=SETTINGS).run_stream("Say hello.") as stream:
        assert "".join([part async for part in stream.stream_text(delta=True)])


@check
def anthropic():
    model = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key="none"))
    assert Agent(model, model_settings=SETTINGS).run_sync("Say hello.").output
