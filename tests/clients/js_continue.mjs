// Continue's CLI over /v1/chat/completions.
import { PROMPT, answered, file, launched } from "./js_agents.mjs";
import { MODEL, URL, check } from "./checks.mjs";

const config = file(
  "config.yaml",
  `name: octavo\nversion: 0.0.1\nschema: v1\nmodels:\n  - name: ${MODEL}\n    provider: openai\n    model: ${MODEL}\n` +
    `    apiBase: ${URL}/v1\n    apiKey: none\n    roles: [chat]\n`,
);
await check("prompt", () => answered("cn", ["-p", PROMPT, "--config", config]));
await check("launch", () => launched("continue", ["-p", PROMPT]));
