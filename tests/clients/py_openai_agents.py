"""The OpenAI Agents SDK: an agent over responses, streamed and not, and one over chat completions.

Answers end by themselves: for this client one that a limit ended is a failure.
"""

import agents
import openai
from checks import MODEL, URL, check

TEXT = "Say only: hi"
agents.set_tracing_disabled(True)


def agent(kind):
    client = openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none")
    return agents.Agent(name="cat", model=kind(MODEL, client), model_settings=agents.ModelSettings(temperature=0))


@check
async def responses():
    assert (await agents.Runner.run(agent(agents.OpenAIResponsesModel), TEXT)).final_output


@check
async def responses_stream():
    made = agents.Runner.run_streamed(agent(agents.OpenAIResponsesModel), TEXT)
    kinds = {event.type async for event in made.stream_events()}
    assert "raw_response_event" in kinds and made.final_output


@check
async def chat():
    assert (await agents.Runner.run(agent(agents.OpenAIChatCompletionsModel), TEXT)).final_output
