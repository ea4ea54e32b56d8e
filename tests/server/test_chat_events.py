"""Events of reasoning and tools -> what a choice gathers. Shapes of the stream: test_tools.py."""

from __future__ import annotations

from octavo.request import FinishReason
from octavo.server.submit import Gathered
from octavo.text.events import Finished, ReasoningDelta, TextDelta, ToolCallDelta


def test_a_choice_gathers_text_reasoning_and_calls() -> None:
    """Every piece in its place, every token once."""
    choice = Gathered()
    for event in (
        ReasoningDelta(0, "Let me ", (1,)),
        ReasoningDelta(0, "look.", (2,)),
        TextDelta(0, "I ask.", (3, 4)),
        ToolCallDelta(0, 0, "call_a", "weather", "", (5,)),
        ToolCallDelta(0, 0, None, None, '{"city": ', (6,)),
        ToolCallDelta(0, 0, None, None, '"Ulm"}', (7,)),
        ToolCallDelta(0, 1, "call_b", "time", "{}"),
        Finished(0, FinishReason.TOOL_CALLS),
    ):
        choice.add(event)
    assert (choice.reasoning, choice.text, choice.reason) == ("Let me look.", "I ask.", "tool_calls")
    calls = [(call.id, call.name, call.arguments) for call in choice.tool_calls]
    assert calls == [("call_a", "weather", '{"city": "Ulm"}'), ("call_b", "time", "{}")]
    assert choice.token_ids == [1, 2, 3, 4, 5, 6, 7]
