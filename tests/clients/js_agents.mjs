// What the scripts of coding agents share: a command in a folder of its own, which must end well and say something.
import { spawn } from "node:child_process";
import { mkdtempSync, mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { URL, assert } from "./checks.mjs";

export const PROMPT = "Say hello in one short sentence. Use no tools.";
export const HOME = mkdtempSync(join(tmpdir(), "agent-"));

export function file(path, text) {
  const whole = join(HOME, path);
  mkdirSync(dirname(whole), { recursive: true });
  writeFileSync(whole, text);
  return whole;
}

const BIN = join(process.cwd(), "node_modules", ".bin");

export function answered(command, words, environment = {}) {
  return ran(join(BIN, command), words, environment);
}

// `octavo launch`, which finds the client's program by the path.
export function launched(name, words, environment = {}) {
  const [octavo, ...rest] = JSON.parse(process.env.OCTAVO_LAUNCH);
  return ran(octavo, [...rest, "--url", URL, name, ...words], { ...environment, PATH: `${BIN}:${process.env.PATH}` });
}

async function ran(path, words, environment) {
  const work = join(HOME, "work");
  mkdirSync(work, { recursive: true });
  const env = { ...process.env, HOME, XDG_CONFIG_HOME: join(HOME, ".config"), CI: "1", ...environment };
  const child = spawn(path, words, { cwd: work, env, stdio: ["ignore", "pipe", "pipe"] });
  let out = "";
  let err = "";
  child.stdout.on("data", (data) => (out += data));
  child.stderr.on("data", (data) => (err += data));
  const timer = setTimeout(() => child.kill("SIGKILL"), 900_000);
  const code = await new Promise((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  assert(code === 0 && out.trim(), `exit ${code}: ${(err || out).trim().slice(-300)}`);
  return out;
}
