"""Chat template -> parser: published templates (tests/tokenizer/carriers.py) against a table, and against themselves.

What a template writes of a call that was made must be read as that call: the family's own spelling is the oracle.
"""

import json
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.text.conversation import Conversations, Ways
from octavo.text.parsers.detect import think_format, tool_format
from octavo.text.parsers.splitter import Parsing
from octavo.text.prompt import PromptTemplate
from tests.text.test_parsers import read
from tests.tokenizer import carriers

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# Every template that names tools, without its `.jinja` -> parser of calls, parser of reasoning.
EXPECTED = {
    "Apertus-8B-Instruct": ("apertus", None),
    "Apriel-1.6-15b-Thinker-fixed": ("tool_calls", "apriel"),
    "Bielik-11B-v3.0-Instruct": ("hermes", "think"),
    "ByteDance-Seed-OSS": ("seed_oss", "seed_oss"),
    "Cohere2MoE": ("cohere", "cohere"),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ("cohere", "cohere"),
    "GLM-4.6": ("glm", "think"),
    "GLM-4.7-Flash": ("glm", "think"),
    "GigaChat3-10B-A1.8B": ("gigachat_role", None),
    "GigaChat3.1-10B-A1.8B": ("gigachat", None),
    "Kimi-K2-Instruct": ("kimi_k2", None),
    "Kimi-K2-Thinking": ("kimi_k2", "think"),
    "LFM2-8B-A1B": ("lfm2", None),
    "LFM2.5-8B-A1B": ("lfm2", "think"),
    "LFM2.5-Instruct": ("lfm2", "think"),
    "MiMo-VL": ("hermes", None),
    "MiniMax-M1": ("tool_calls", None),
    "MiniMax-M2": ("minimax_m2", "think"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral", None),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen3_coder", "think"),
    "NVIDIA-Nemotron-Nano-v2": ("nemotron", "think"),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": ("hermes", None),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", None),
    "Qwen-QwQ-32B": ("hermes", "think"),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", None),
    "Qwen-Qwen3-0.6B": ("hermes", "think"),
    "Qwen3-Coder": ("qwen3_coder", None),
    "Qwen3.5-4B": ("qwen3_coder", "think"),
    "Reka-Edge": ("hermes", "think"),
    "Spark2.5": ("glm", "think"),
    "StepFun3.5-Flash": ("qwen3_coder", "think"),
    "deepseek-ai-DeepSeek-V3.2": ("deepseek_v32", "think"),
    "deepseek-ai-DeepSeek-V4": ("deepseek_v4", "think"),
    "deepseek-ai-DeepSeek-V4-Flash-0731": ("deepseek_v4", "think"),
    "google-gemma-4-31B-it": ("gemma4", "gemma4"),
    "google-gemma-4-31B-it-interleaved": ("gemma4", "gemma4"),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", "granite"),
    "ibm-granite-granite-4.0": ("hermes", None),
    "ibm-granite-granite-4.1": ("hermes", None),
    "inclusionai-ling-3.0-flash": ("glm", "think"),
    "meetkai-functionary-medium-v3.1": ("functionary_v31", None),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3_json", None),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3_json", None),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama3_json", None),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "mistral"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral", None),
    "moonshotai-Kimi-K2": ("kimi_k2", None),
    "openai-gpt-oss-120b": ("harmony", "harmony"),
    "openbmb-MiniCPM5-1B": ("minicpm5", "think"),
    "poolside-Laguna-S-2.1": ("glm", "think"),
    "poolside-Laguna-XS-2.1": ("glm", "think"),
    "poolside-Laguna-XS.2": ("glm", "think"),
    "tencent-Hy3": ("hunyuan", "hunyuan"),
    "unsloth-Apriel-1.5": ("tool_calls", "apriel"),
    "unsloth-mistral-Devstral-Small-2507": ("mistral", None),
    "upstage-Solar-Open-100B": ("solar", None),
}
# Templates that name tools in a spelling that is not read; docs/missing.md tells.
UNREAD = {"CohereForAI-c4ai-command-r-plus-tool_use", "Kimi-K3", "MiniMax-M3", "meetkai-functionary-medium-v3.2"} | {
    "muse-glimmer"
}
# They write earlier calls of theirs in no way, or only the first one of several.
FORGETFUL = {"Kimi-K2-Instruct", "Kimi-K2-Thinking", "LFM2-8B-A1B", "LFM2.5-Instruct"} | {
    "ibm-granite-granite-3.3-2B-Instruct"
}
ONE_AT_A_TIME = {name for name in EXPECTED if name.startswith(("meta-llama", "GigaChat3", "openai"))}

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "What."},
        "times": {"type": "integer", "description": "How often."},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "Which."},
    },
    "required": ["text"],
}
TOOL = {
    "type": "function",
    "function": {"name": "oktavheft_noted", "description": "Notes.", "parameters": PARAMETERS},
}
ARGUMENTS = [{"text": "Łódź 🏙 } < it", "times": 3, "tags": ["a", "b"]}, {"text": "two", "times": 1, "tags": ["c"]}]


def conversations(name: str, names: Ways | None = None) -> Conversations:
    source = Path(carriers.files("llama.cpp")[f"{name}.jinja"]).read_text(encoding="utf-8")
    return Conversations(PromptTemplate({"default": source}, SPECIAL), names)


@pytest.mark.parametrize("part", range(4))
def test_published_templates(part: int) -> None:
    for name, (tools, think) in sorted(EXPECTED.items())[part::4]:
        found = conversations(name)
        assert not found.in_words, name
        assert (found.tools and found.tools.name, found.think and found.think.name) == (tools, think), name


def test_every_template_that_names_tools_is_in_the_table() -> None:
    named = {file.removesuffix(".jinja") for file in carriers.files("llama.cpp") if file.endswith(".jinja")}
    for name in sorted(named - set(EXPECTED)):
        found = conversations(name)
        if name in UNREAD:
            assert found.tools is None and not found.in_words, name
        else:
            assert found.in_words and found.tools is not None and found.tools.name == "hermes", name


@pytest.mark.parametrize("part", range(4))
def test_what_a_template_writes_is_read(part: int) -> None:
    """A turn with one or two calls, as the model was trained to write it."""
    for name in sorted(set(EXPECTED) - FORGETFUL)[part::4]:
        found = conversations(name)
        count = 1 if name in ONE_AT_A_TIME else 2
        calls = [
            {"id": f"oktav123{n}", "type": "function", "function": {"name": "oktavheft_noted", "arguments": arguments}}
            for n, arguments in enumerate(map(json.dumps, ARGUMENTS[:count]))
        ]
        user = {"role": "user", "content": "."}
        turn = {"role": "assistant", "content": "", "tool_calls": calls}
        template, user = found._template, {"role": "user", "content": "."}
        written = template.render_messages([user, turn], tools=[TOOL], add_generation_prompt=False).text
        begun = (template.render_messages([user], tools=[TOOL], add_generation_prompt=on).text for on in (True, False))
        before = next(each for each in begun if written.startswith(each))
        functions = {"oktavheft_noted": PARAMETERS}
        is_open = found.think is not None and before.rstrip().endswith(found.think.begin)
        said = read(Parsing(found.tools, found.think, is_open, functions), [written.removeprefix(before)])
        assert [(call, json.loads(arguments)) for call, arguments in said.calls] == [
            ("oktavheft_noted", arguments) for arguments in ARGUMENTS[:count]
        ], f"{name}: {written!r}"


def test_flags_override() -> None:
    """Names of ours and of other servers, none, and one that nobody knows."""
    assert tool_format("qwen25") is tool_format("hermes") and think_format("deepseek_r1") is think_format("qwen3")
    found = conversations("Qwen-Qwen3-0.6B", Ways("llama3_json", "none"))
    assert found.tools is tool_format("llama3_json") and found.think is None
    assert conversations("Qwen-Qwen3-0.6B", Ways("none")).tools is None
    with pytest.raises(ConfigError, match="--tool-call-parser qwen99: no such parser"):
        conversations("Qwen-Qwen3-0.6B", Ways("qwen99"))
