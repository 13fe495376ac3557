// The removal orders of a dense model, with the quality of every depth, from jobs and checkpoints.

import { json } from "./api.js";

const PAGE = 100;
const MAX_PAGES = 5; // of jobs: a curve of more is no picture any more

async function jobsOf(model) {
  const found = [];
  let page = { data: [], has_more: true };
  for (let index = 0; index < MAX_PAGES && page.has_more; index += 1) {
    const query = new URLSearchParams({ limit: PAGE });
    if (index > 0) query.set("after", page.data.at(-1).id);
    page = await json(`/prune-jobs?${query}`);
    found.push(...page.data.filter((job) => job.model === model && (job.removed_blocks.length > 0 || job.source !== null)));
  }
  return found;
}

/** The speed-up that was measured at this depth, or else the job's own prediction. */
function speedOf({ measured_speedup: bench, predicted_speedup: predicted }) {
  if (bench !== null) return { ratio: bench.ratio, low: bench.low, high: bench.high, how: `measured, ${bench.scenario}` };
  return predicted === null ? null : { ratio: predicted, low: null, high: null, how: "predicted" };
}

/** Points of a depth and a domain: as served, and raw where that differs. */
export function pointsOf(prefix) {
  return prefix.domains.map((domain) => ({
    depth: prefix.num_removed,
    model: prefix.model,
    block: prefix.removed_block,
    domain: domain.domain,
    text: domain.text,
    speed: speedOf(prefix),
    perplexity: domain.perplexity,
    dense: domain.dense_perplexity,
    ratio: domain.ratio,
    low: domain.ratio_low,
    high: domain.ratio_high,
    repair: prefix.repair?.is_healed ? "healed" : prefix.repair?.method ?? "none",
    raw: prefix.repair ? { model: prefix.repair.raw, perplexity: domain.raw_perplexity,
      ratio: domain.raw_ratio, low: domain.raw_ratio_low, high: domain.raw_ratio_high } : null,
  }));
}

/** A model of the list as a prefix of its checkpoint. */
const prefixOf = (model) => ({ ...model, model: model.id, num_removed: model.removed_blocks.length, removed_block: model.removed_blocks.at(-1) });

/** Orders that only checkpoints tell of, as the demo's: their jobs are in no list. `job` is null. */
function withoutJob(model, models, jobs) {
  const known = new Set(jobs.map((job) => `${model}@${job.id}`));
  const pruned = models.filter((each) => each.parent === model && each.variant === "pruned" && each.checkpoint && each.domains.length > 0);
  const others = pruned.filter(({ checkpoint }) => !known.has(checkpoint.split("+")[0]));
  return [...Map.groupBy(others, ({ checkpoint }) => checkpoint)].map(([name, found]) => {
    const byDepth = new Map(found.map((each) => [each.removed_blocks.length, each]).sort(([, one], [, other]) => other.id.length - one.id.length));
    const prefixes = [...byDepth.values()].map(prefixOf).sort((one, other) => one.num_removed - other.num_removed);
    return { name, job: null, points: prefixes.flatMap(pointsOf) };
  });
}

/** All orders of the model that were evaluated, newest first: `{name, job, points}`. */
export async function ordersOf(model) {
  const [jobs, { data: models }] = await Promise.all([jobsOf(model), json("/models")]);
  const found = await Promise.all(jobs.map(async (job) => {
    const { data } = await json(`/prune-jobs/${encodeURIComponent(job.id)}/checkpoints`);
    const points = data.flatMap(({ prefixes }) => prefixes).flatMap(pointsOf);
    return { name: `${model}@${job.id}`, job, points };
  }));
  return [...found.filter(({ points }) => points.length > 0), ...withoutJob(model, models, jobs)];
}

/** Lines of CSV (RFC 4180). A cell that a spreadsheet would run as a formula gets a quote in front. */
export function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
