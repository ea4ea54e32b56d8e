"""Haystack's chat generator: a body and a stream."""

from checks import MODEL, URL, check
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret


def answered(**more):
    made = OpenAIChatGenerator(
        api_key=Secret.from_token("none"), model=MODEL, api_base_url=URL + "/v1",
        generation_kwargs={"max_tokens": 16, "n": 1}, **more,
    )  # fmt: skip
    return made.run([ChatMessage.from_user("Say hello.")])["replies"][0].text


@check
def chat():
    assert answered()


@check
def chat_stream():
    parts = []
    text = answered(streaming_callback=parts.append)
    assert text == "".join(part.content or "" for part in parts)
