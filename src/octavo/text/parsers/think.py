"""Reasoning between tags. A family whose template opens the tag itself needs nothing more: the prompt tells."""

from __future__ import annotations

from octavo.text.parsers.formats import ThinkFormat

FORMATS = (
    ThinkFormat("seed_oss", "<seed:think>", "</seed:think>", [["<seed:think>"]]),
    ThinkFormat("minimax_m3", "<mm:think>", "</mm:think>", [["<mm:think>"]]),
    ThinkFormat("hunyuan", "<think:opensource>", "</think:opensource>", [["<think:opensource>"]]),
    ThinkFormat("mistral", "[THINK]", "[/THINK]", [["[THINK]"]], aliases=("magistral", "ministral")),
    ThinkFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>", [["<|START_THINKING|>"]], aliases=("command_r",)),
    ThinkFormat("gemma4", "<|channel>thought\n", "<channel|>", [["<|channel>thought"]], anywhere=True,
                forced="\n<channel|>"),
    ThinkFormat(
        "apriel", "Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]", [["[BEGIN FINAL RESPONSE]"]],
    ),
    ThinkFormat(
        "granite", "<think>", "</think>", [["<think></think>", "<response></response>"]],
        dropped=("<response>", "</response>"),
    ),
    ThinkFormat(
        "think", "<think>", "</think>", [["<think>"], ["</think>"]],
        aliases=(
            "deepseek_r1", "deepseek-r1", "deepseek_v3", "deepseek", "qwen3", "qwen3-thinking", "qwq", "glm45", "glm",
            "kimi_k2", "minimax_m2", "nemotron_v3", "step3", "step3p5", "ernie45", "olmo3", "exaone", "holo2", "lfm2",
        ),
    ),
)  # fmt: skip
