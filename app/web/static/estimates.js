// What a job would need, as the service estimates it.

import { el, facts } from "./dom.js";
import { bytes, count, seconds } from "./format.js";

const timeOf = (found, done) => (found.estimated_s === null ? `unknown: no similar job has ${done} here yet`
  : `${seconds(found.estimated_s)}${done === "run" ? "" : " at most"}, by ${count(found.estimated_from.length, "similar job")}`);

export function estimateOf(found) {
  const evaluations = `${found.is_upper_bound ? "at most " : ""}${found.evaluations_total}`;
  const states = found.state_bytes === null ? `at least ${bytes(found.least_state_bytes)}`
    : `${bytes(found.state_bytes)} at full speed, at least ${bytes(found.least_state_bytes)}`;
  return [facts([
    ["Time", timeOf(found, "run")], ["Evaluations", evaluations],
    ["In memory", `weights ${bytes(found.weight_bytes)}; states ${states}`],
    ["On disk", `${bytes(found.checkpoint_bytes + found.repair_bytes)} of ${bytes(found.free_disk_bytes)} free`],
  ]), found.heal && [el("h3", {}, "Healing, additionally"), healingOf(found.heal)]];
}

export function healingOf(found) {
  return facts([
    ["Tokens", `${found.num_tokens}${found.control_tokens ? `, and ${found.control_tokens} for the control` : ""}`],
    ["Time", timeOf(found, "healed")], ["Training in memory", `${bytes(found.training_bytes)}, plus weights and activations`],
    ["On disk", `${bytes(found.checkpoint_bytes)} at most`],
  ]);
}
