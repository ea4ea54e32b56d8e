"""LangChain's chat models for OpenAI, Ollama and Anthropic: invoke, stream, usage."""

from checks import MODEL, URL, check
from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAI

TEXT = "Say hello to my cat."


def exercised(model):
    made = model.invoke(TEXT)
    assert made.content and made.usage_metadata["output_tokens"]
    parts = list(model.stream(TEXT))
    assert "".join(str(part.text) for part in parts)


@check
def openai_chat():
    exercised(ChatOpenAI(base_url=URL + "/v1", api_key="none", model=MODEL, max_tokens=16, stream_usage=True))


@check
def openai_responses():
    exercised(ChatOpenAI(base_url=URL + "/v1", api_key="none", model=MODEL, max_tokens=16, use_responses_api=True))


@check
def openai_completion():
    assert OpenAI(base_url=URL + "/v1", api_key="none", model=MODEL, max_tokens=16).invoke(TEXT)


@check
def ollama():
    exercised(ChatOllama(base_url=URL, model=MODEL, num_predict=16, validate_model_on_init=True))


@check
def anthropic():
    exercised(ChatAnthropic(base_url=URL, api_key="none", model=MODEL, max_tokens=16))
