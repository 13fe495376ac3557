// Speed-ups by depth, measured in alternating turns and remembered while the tab is open.

import { post } from "./api.js";

const AT_ONCE = 3; // variants beside the dense model in one comparison
const REPEATS = 5;
const NEW_TOKENS = 32;
const PROMPT = "Once upon a time, in a small village by the sea,";
const TIMEOUT_MS = 1800000;

const key = (model) => `speeds ${model}`;

/** What was measured in this tab by depth: `{ratio, low, high, how}`. */
export function measured(model) {
  return new Map(JSON.parse(sessionStorage.getItem(key(model)) ?? "[]"));
}

/**
 * Measure one variant of each depth: which blocks are missing makes no difference to the speed.
 * `variants` is a map from depth to a name; `onProgress` gets the map of what is known so far.
 */
export async function measure(model, variants, onProgress) {
  const found = measured(model);
  const entries = [...variants];
  for (let index = 0; index < entries.length; index += AT_ONCE) {
    const some = entries.slice(index, index + AT_ONCE);
    const comparison = await post("/compare", { models: [model, ...some.map(([, name]) => name)],
      prompt: PROMPT, max_new_tokens: NEW_TOKENS, repeats: REPEATS, ignore_eos: true }, { timeoutMs: TIMEOUT_MS });
    for (const { model: name, tpot } of comparison.results) {
      const [depth] = some.find(([, each]) => each === name);
      if (tpot) found.set(depth, { ratio: tpot.ratio, low: tpot.low, high: tpot.high, how: `measured here, ${tpot.verdict}` });
    }
    sessionStorage.setItem(key(model), JSON.stringify([...found]));
    onProgress(found, Math.min(index + AT_ONCE, entries.length), entries.length);
  }
  return found;
}
