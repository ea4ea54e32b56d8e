// qwen-code over /v1/chat/completions.
import { PROMPT, answered, launched } from "./js_agents.mjs";
import { MODEL, URL, check } from "./checks.mjs";

const environment = { OPENAI_BASE_URL: `${URL}/v1`, OPENAI_API_KEY: "none", OPENAI_MODEL: MODEL };
await check("prompt", () => answered("qwen", ["--auth-type", "openai", "-p", PROMPT], environment));
await check("launch", () => launched("qwen", ["-p", PROMPT]));
