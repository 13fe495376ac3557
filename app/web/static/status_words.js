// Statuses and phases of a job, as all pages show them.

import { el } from "./dom.js";
import { bytes } from "./format.js";

const TONES = { running: "good", succeeded: "good", failed: "bad", cancelled: "muted",
  cancelling: "warn", paused: "warn" };
export const FINAL = new Set(["succeeded", "failed", "cancelled"]);

export function statusOf(job) {
  const words = job.pause_requested_at !== null && job.status === "running"
    ? "pausing" : job.status;
  return el("span", { class: `status ${TONES[job.status] ?? ""}` }, words);
}

const TARGETS = {
  num_remove: (value) => `remove ${value}`,
  sparsity: (value) => `remove ${value} of the blocks`,
  max_perplexity_ratio: (value) => `perplexity at most ${value}×`,
  target_speedup: (value) => `speed-up of ${value}×`,
  target_bytes: (value) => `at most ${bytes(value)}`,
};

/** How far the job prunes, or what it heals, in words. */
export function targetOf({ spec, source }) {
  if (source !== null) return "heal";
  const [key] = Object.keys(TARGETS).filter((name) => spec[name] !== null && spec[name] !== undefined);
  return key ? `${TARGETS[key](spec[key])}${spec.heal ? ", heal" : ""}` : "";
}
