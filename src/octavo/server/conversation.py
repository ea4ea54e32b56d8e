"""A conversation of any dialect -> its answer under way: what the dialects share between body and stream."""

from __future__ import annotations

from octavo.request import ChatRequest
from octavo.server.limits import MAX_MESSAGES, check_count, check_depth
from octavo.server.submit import Answering, Front


def check_conversation(chat: ChatRequest) -> None:
    """InvalidRequest for one that is too long or nested too deeply, before any work."""
    check_count(len(chat.messages), MAX_MESSAGES, "messages", "messages")
    for name in ("messages", "tools", "chat_template_kwargs"):
        check_depth(getattr(chat, name), name)


async def converse(front: Front, chat: ChatRequest, salt: str | None = None) -> Answering:
    """The answer, not begun. Raises InvalidRequest or ContextLengthExceeded."""
    check_conversation(chat)
    return await front.chat(chat, salt=salt)


async def prompt_ids(front: Front, chat: ChatRequest) -> tuple[int, ...]:
    """What the model would read of it."""
    check_conversation(chat)
    text = await front.llm.render(chat)
    front.check_length(text, "messages")
    return await front.llm.encode(text, False)


def answer_headers(front: Front, answering: Answering) -> dict[str, str]:
    """What repeats the answer, and whether a plain template of ours stood in for a model's that has none."""
    seed = answering.seed
    told = {"x-octavo-seed": str(seed) if isinstance(seed, int) else ",".join(map(str, seed))}
    return {**told, **answering.told}
