// What to take of a model: a sentence and a table, as the service advises.

import { json } from "./api.js";
import { bracketed, el, name, table } from "./dom.js";
import { interval, ratio, shortName, unbroken } from "./format.js";
import { act } from "./live.js";
import { FRONTIERS } from "./measuring.js";

const [JOBS, HEAL_JOBS] = ["/prune-jobs", "/heal-jobs"];
const KEEPS = { kept: "all", exceeded: "not: ", undecided: "undecided: " };

/** The advice for a dense model within limits, or null where there is none: it is gone, or may not be seen. */
export function adviceOn(model, limits = {}) {
  const query = new URLSearchParams(limits);
  return json(`/models/${encodeURIComponent(model)}/advice${query.size ? `?${query}` : ""}`).catch(() => null);
}

const cell = (found) => (found ? [ratio(found.value), found.low === null ? null : bracketed(interval(found.low, found.high))] : null);

/** The recommendation, whose first words are its headline. */
export function sentenceOf(advice) {
  const [headline, ...rest] = unbroken(advice.sentence).split(/(?<=[:.]) /);
  const shown = advice.taken === null ? headline : headline.replace(advice.taken, shortName(advice.taken));
  return el("p", { class: "advice" }, el("strong", { title: advice.taken ?? "" }, name(shown)), rest.length ? ` ${rest.join(" ")}` : "");
}

/** A button that leads to a variant beside the dense model. */
export function sidesOf(dense, variant, tone = "") {
  const sides = new URLSearchParams([["model", dense], ["model", variant]]);
  return el("a", { class: `button ${tone}`, "data-needs": "generate", href: `/ui/compare?${sides}` }, "Compare with dense");
}

/**
 * The one thing to do next: its command, and a button where the service can do it. `measure` is called with what
 * is to be measured; without it, another page does that.
 */
export function nextOf({ next_step: step }, measure = null) {
  if (step === null) return null;
  const words = `${step.words[0].toUpperCase()}${step.words.slice(1)}`;
  const scope = step.request?.path === JOBS || step.request?.path === HEAL_JOBS ? "jobs" : "admin";
  const isHere = step.request && (measure || step.request.path !== FRONTIERS);
  return [el("p", { class: "note" }, `Next: ${step.words}: `, el("code", {}, step.command)),
    isHere && el("p", { class: "row" }, el("button", { "data-key": "next", "data-needs": scope,
      onclick: (event) => act(event.target, () => follow(step.request, measure)) }, words))];
}

/** Send the request of a step, and show what it began. */
async function follow({ method, path, body }, measure) {
  if (path === FRONTIERS) return measure(body);
  const found = await json(path, { method, body, timeoutMs: 600000 });
  if (found.object === "prune_job") location.assign(`/ui/jobs/${encodeURIComponent(found.id)}`);
  else location.reload();
}

const probeOf = ({ probe_score: score, dense_probe_score: dense }) => (score === null ? null : `${score.toFixed(2)} of ${dense.toFixed(2)}`);

/** The speed of a candidate at a load, and whether it was measured at the first one. */
const speedOf = (depth, load, isFirst) => depth.speeds[load.name] && [...cell(depth.speeds[load.name]),
  isFirst ? el("span", { class: "sub" }, depth.is_measured ? "measured" : "predicted") : null];

/** Every candidate with what it gives and costs, against the limits. */
export function adviceTable(advice) {
  const domains = [...new Set(advice.depths.flatMap(({ ratios }) => Object.keys(ratios)))];
  const isProbed = advice.depths.some(({ probe_score: score }) => score !== null);
  const hasTasks = advice.depths.some(({ tasks }) => tasks !== null);
  const columns = [{ title: "variant" }, { title: "blocks", num: true }, ...advice.loads.map(({ words }) => ({ title: `speed-up ${words}`, num: true })),
    ...domains.map((domain) => ({ title: `× perplexity, ${domain}`, num: true })), ...(isProbed ? [{ title: "probe", num: true }] : []),
    ...(hasTasks ? [{ title: "share of task accuracy above chance", num: true }] : []), { title: "meets limits" }];
  const rows = advice.depths.map((depth) => [
    [el("span", { title: depth.name }, name(shortName(depth.short_name))), depth.name === advice.taken ? el("span", { class: "sub good" }, "recommended") : null],
    String(depth.num_blocks),
    ...advice.loads.map((load, index) => speedOf(depth, load, index === 0)),
    ...domains.map((domain) => cell(depth.ratios[domain])),
    ...(isProbed ? [probeOf(depth)] : []),
    ...(hasTasks ? [cell(depth.tasks?.share)] : []),
    el("span", { title: depth.because }, `${KEEPS[depth.verdict]}${depth.failing.join(", ")}`),
  ]);
  const { max_ratio: most, min_speedup: least } = advice.limits;
  return [advice.depths.length ? table(`Candidates of ${advice.model}`, columns, rows) : null,
    el("p", { class: "note" }, `Limits: at most ${most} × the dense perplexity on every text, and a speed-up of at least ${least} ×. For other limits, run `, el("code", {}, `sleb advise ${advice.model} --max-ratio 1.2 --min-speedup 1.05`), ".")];
}
