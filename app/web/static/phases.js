// The phases of a job as steps, each with its own bar, and how long the one that runs still takes.

import { el } from "./dom.js";
import { seconds } from "./format.js";
import { FINAL } from "./status_words.js";

const WORDS = { load: "Load the model", calibrate: "Sample the text", search: "Search", repair: "Repair", heal: "Heal",
  evaluate: "Evaluate", publish: "Publish" };
const MIN_COUNTS = 3; // behind which a pace is more than a single sample

/** The phases of this job in their order. */
function phasesOf({ source, spec }) {
  if (source !== null) return ["load", "calibrate", "heal", "evaluate", "publish"];
  return ["load", "calibrate", "search", ...(spec.repair === "none" ? [] : ["repair"]), ...(spec.evaluate ? ["evaluate"] : []),
    "publish", ...(spec.heal ? ["heal"] : [])];
}

/** The step that runs; what follows the training of a job that prunes and heals belongs to its last step. */
function currentOf(job, phases) {
  if (job.status === "succeeded") return phases.length;
  if (job.source === null && job.spec.heal && job.heal_progress !== null) return phases.length - 1;
  return phases.indexOf(job.phase);
}

const countsOf = ({ progress, repair_progress: repair, heal_progress: heal }) => ({
  search: progress.evaluations_total ? { done: progress.evaluations_done, total: progress.evaluations_total, ratio: progress.ratio, unit: "evaluations" } : null,
  repair: repair && { done: repair.steps_done, total: repair.steps_total, ratio: repair.ratio, unit: "steps" },
  heal: heal && { done: heal.num_tokens, total: null, ratio: heal.ratio, unit: heal.training === "control" ? "control tokens" : "tokens" },
});

function barOf(phase, state, counts) {
  if (state === "next") return el("progress", { value: 0, max: 1, "aria-label": WORDS[phase] });
  if (state === "done") return el("progress", { value: 1, max: 1, "aria-label": WORDS[phase] });
  return el("progress", { value: counts?.ratio, max: 1, "aria-label": WORDS[phase] }); // it moves without a value
}

function detailOf(state, counts) {
  if (state === "next" || !counts) return null;
  const total = counts.total ? ` of ${counts.total}` : "";
  return el("span", { class: "sub" }, `${counts.done}${total} ${counts.unit}${state === "now" ? `, ${Math.round(counts.ratio * 100)} %` : ""}`);
}

/**
 * How long the phase still takes, as a range: an estimate by so many counts is as uncertain as one
 * over their root. Null before there are enough of them.
 */
export function leftOf(estimatedS, counts) {
  const done = counts?.unit?.startsWith("tokens") ? counts.ratio * 100 : counts?.done ?? 0;
  if (!(estimatedS > 0) || done < MIN_COUNTS) return null;
  const spread = Math.min(0.5, Math.max(0.1, 1 / Math.sqrt(done)));
  const [low, high] = [estimatedS * (1 - spread), estimatedS * (1 + spread)].map((value) => Math.max(1, Math.round(value)));
  return low === high ? seconds(low) : `${seconds(low)} to ${seconds(high)}`;
}

function headline(job, phase, counts) {
  if (job.status === "queued") return "Waiting for a worker.";
  if (job.status === "paused") return "Paused.";
  const left = leftOf((job.estimated_finish ?? 0) - Date.now() / 1000, counts);
  const then = counts === undefined ? "" : left === null ? " Estimating the time left." : ` ${left} left in this phase.`;
  return `${phase ? WORDS[phase] : "Starting"}.${then}`;
}

/** The steps of a job; nothing once it has ended. */
export function phases(job) {
  if (FINAL.has(job.status)) return null;
  const all = phasesOf(job);
  const current = currentOf(job, all);
  const counts = countsOf(job);
  return [el("p", { class: "headline", role: "status" }, headline(job, all[current], counts[all[current]])),
    el("ol", { class: "phases" }, all.map((phase, index) => {
      const state = index < current ? "done" : index === current ? "now" : "next";
      return el("li", { class: state, "aria-current": state === "now" ? "step" : null }, el("span", {}, WORDS[phase]),
        barOf(phase, state, counts[phase]), detailOf(state, counts[phase]));
    }))];
}
