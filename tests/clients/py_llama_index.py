"""LlamaIndex: OpenAI-like and Ollama models."""

from checks import MODEL, URL, check
from llama_index.core.llms import ChatMessage
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike


def exercised(model):
    messages = [ChatMessage(role="user", content="Say hello.")]
    assert model.chat(messages).message.content
    assert "".join(part.delta or "" for part in model.stream_chat(messages))


@check
def openai_like():
    model = OpenAILike(
        model=MODEL, api_base=URL + "/v1", api_key="none", is_chat_model=True, max_tokens=16, context_window=1024
    )
    exercised(model)
    plain = OpenAILike(model=MODEL, api_base=URL + "/v1", api_key="none", max_tokens=16, context_window=1024)
    assert plain.complete("Once upon a time").text


@check
def ollama():
    exercised(Ollama(model=MODEL, base_url=URL, additional_kwargs={"num_predict": 16}, request_timeout=60))
