// Claude Code over /v1/messages.
import { PROMPT, answered, launched } from "./js_agents.mjs";
import { MODEL, URL, check } from "./checks.mjs";

const quiet = {
  DISABLE_TELEMETRY: "1", DISABLE_ERROR_REPORTING: "1", DISABLE_AUTOUPDATER: "1",
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
};
const kinds = ["MODEL", "DEFAULT_OPUS_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_HAIKU_MODEL"];
const environment = {
  ...quiet,
  ANTHROPIC_BASE_URL: URL,
  ANTHROPIC_AUTH_TOKEN: "none",
  CLAUDE_CODE_SUBAGENT_MODEL: MODEL,
  CLAUDE_CODE_ATTRIBUTION_HEADER: "0",
  ...Object.fromEntries(kinds.map((kind) => [`ANTHROPIC_${kind}`, MODEL])),
};
await check("print", () => answered("claude", ["-p", PROMPT], environment));
await check("launch", () => launched("claude", ["-p", PROMPT], quiet));
