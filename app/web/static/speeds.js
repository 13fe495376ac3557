// Measure speed-ups by depth in alternating turns. The service keeps them, so that all pages and commands know them.

import { post } from "./api.js";

const AT_ONCE = 3; // variants beside the dense model in one comparison
const REPEATS = 5;
const MAX_SECONDS = 60; // of one comparison, where noise makes more repeats necessary
const NEW_TOKENS = 32;
const PROMPT = "Once upon a time, in a small village by the sea,";
const TIMEOUT_MS = 1800000;

/** Measure the variants of these names; `onProgress` is called with how many are done. */
export async function measure(model, variants, onProgress) {
  for (let index = 0; index < variants.length; index += AT_ONCE) {
    const some = variants.slice(index, index + AT_ONCE);
    await post("/compare", { models: [model, ...some], prompt: PROMPT, max_new_tokens: NEW_TOKENS, repeats: REPEATS,
      max_seconds: MAX_SECONDS, ignore_eos: true }, { timeoutMs: TIMEOUT_MS });
    await onProgress(index + some.length);
  }
}
