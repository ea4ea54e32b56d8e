"""instructor: an object by a JSON schema, and one by a tool call that is required."""

import instructor
import openai
from checks import MODEL, URL, check
from pydantic import BaseModel, Field


class Cat(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=99)


def asked(mode):
    client = instructor.from_openai(openai.OpenAI(base_url=URL + "/v1", api_key="none"), mode=mode)
    messages = [{"role": "user", "content": "Tom is a cat of 3 years. Who is he?"}]
    made = client.chat.completions.create(
        model=MODEL, response_model=Cat, messages=messages, max_tokens=100, max_retries=1
    )
    assert isinstance(made, Cat)


@check
def json_schema():
    asked(instructor.Mode.JSON_SCHEMA)


@check
def tools():
    asked(instructor.Mode.TOOLS)
