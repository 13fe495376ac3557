// One result: the speed-ups of a benchmark with their intervals, or how far runs of a search agree.

import { json } from "./api.js";
import { bracketed, byId, el, facts, fill, shortened, table, text } from "./dom.js";
import { forest } from "./forest.js";
import { bytes, interval, moment, perplexity, ratio, seconds } from "./format.js";
import { begin } from "./live.js";
import { Plot } from "./plot.js";

const numbers = (titles, numText) => titles.map((title, index) => ({ title, num: index >= numText }));
const share = (value) => (value === null ? null : value.toFixed(2));

const NAMES = { tpot: "per token", ttft: "first token", e2e: "answer" };

/** A variant of the model, as there is room for in a picture. */
function short(variant) {
  const rest = variant.split("@").at(-1);
  return rest.length > 12 ? `…${rest.slice(-10)}` : variant.includes("@") ? `@${rest}` : rest;
}

function benchRow({ variant, time, dense_s: dense, variant_s: own, speedup: found, ideal }) {
  return [shortened(variant), el("span", { class: "whole" }, NAMES[time] ?? time), seconds(dense), seconds(own), ratio(found.ratio),
    interval(found.low, found.high), ideal === null ? null : ratio(ideal), [found.verdict, el("span", { class: "sub" }, found.reason)]];
}

function bench(report) {
  const scenarios = [...new Set(report.results.map(({ scenario }) => scenario))];
  const columns = [...numbers(["variant", "time", "dense", "variant's", "speed-up", "95 % interval", "ideal"], 2), { title: "verdict" }];
  return scenarios.flatMap((scenario) => {
    const rows = report.results.filter((each) => each.scenario === scenario);
    return [el("h2", {}, `Scenario: ${scenario}`),
      forest(`Speed-ups of the scenario ${scenario}; the table below has the values`, rows.map(({ variant, time, speedup: found, ideal }) => ({
        label: `${short(variant)}, ${NAMES[time] ?? time}`, value: found.ratio, low: found.low, high: found.high, ideal, verdict: found.verdict }))),
      table(`Speed-ups of the scenario ${scenario}`, columns, rows.map(benchRow))];
  });
}

const BENCH_NOTE = "Each point is the ratio of mean times, dense / variant, with its 95 % interval; hollow points have no verdict. The green line is the ideal speed-up of a forward pass with only embeddings, blocks and head.";

function removals(numBlocks, order) {
  const step = new Map(order.map((block, index) => [block, index + 1]));
  return el("ul", { class: "blocks" }, Array.from({ length: numBlocks }, (_, block) => {
    const at = step.get(block);
    return el("li", { class: at && "gone" }, el("span", { class: "unseen" }, at ? `block ${block}, removed in round ` : `block ${block} kept`),
      el("span", { "aria-hidden": at ? null : "true" }, at ?? "·"));
  }));
}

function stability(report) {
  const texts = Object.keys(report.dense_perplexities);
  const runs = report.runs.flatMap((run) => [el("h3", {}, `${run.text}, seed ${run.seed}`),
    removals(report.num_blocks, run.removals.map(({ block }) => block))]);
  const columns = numbers(["removed", "sets", "overlap", "lowest", "by chance", "close rounds", ...texts.map((each) => `perplexity, ${each}`)], 1);
  const rows = report.depths.map((depth) => [String(depth.num_removed), String(depth.num_sets), share(depth.overlap), share(depth.lowest_overlap),
    share(depth.overlap_by_chance), `${depth.num_close} of ${depth.num_margins}`,
    ...texts.map((each) => [perplexity(depth.perplexities[each].median), el("span", { class: "sub" },
      `${perplexity(depth.perplexities[each].lowest)}–${perplexity(depth.perplexities[each].highest)}`)])]);
  const picked = report.picked.map(({ block, num_runs: times, steps }) => [String(block), `${times} of ${report.runs.length}`, steps.join(", ")]);
  return [el("ul", {}, report.conclusions.map((sentence) => el("li", {}, text(sentence)))),
    el("h2", {}, "Removal order of each run"), runs,
    el("h2", {}, "By depth"), table("Agreement by depth", columns, rows),
    el("p", { class: "note" }, "Overlap is the number of blocks that both of two runs removed, divided by the number that either removed. Perplexity is the median and the range over all runs, on text that no run used."),
    el("h2", {}, "By block"), table("Blocks that runs removed", numbers(["block", "removed in", "as removal"], 1), picked)];
}

/** The perplexity of all runs by depth: the median, and bars from the lowest to the highest. */
function drawSpread(report) {
  const texts = Object.keys(report.dense_perplexities);
  byId("figure").hidden = false;
  byId("what").textContent = "Perplexity by removed blocks: the median of all runs, and their range";
  new Plot(byId("plot"), "Perplexity of all runs by depth; the table above has the values").draw({
    x: report.depths.map((depth) => depth.num_removed), xLabel: "removed blocks", xStep: true,
    series: texts.map((each, hue) => ({ label: each, hue, format: perplexity,
      values: report.depths.map((depth) => depth.perplexities[each].median),
      bounds: report.depths.map((depth) => [depth.perplexities[each].lowest, depth.perplexities[each].highest]) })),
  });
}

const EVAL_NOTE = "Perplexity on held-out text, measured with the served weights; 95 % intervals in brackets. The ratio compares with the dense model on the same windows: lower is better, 1 means no loss.";

function answered({ task, num_samples, value, standard_error: error }, shares) {
  const found = shares?.by_task[task];
  return [task, String(num_samples), found ? found.dense_accuracy.toFixed(3) : null,
    [value.toFixed(3), error === null ? null : bracketed(`± ${error.toFixed(3)}`)],
    found?.share ? [share(found.share.value), bracketed(`${share(found.share.low)}–${share(found.share.high)}`)] : null,
    found ? `${Math.round(100 * found.flips)} %` : null];
}

function evaluation({ model, texts, tasks = [], task_shares: shares = null }) {
  const rows = texts.map((found) => [found.text, `${found.num_windows} × ${found.seqlen}`,
    found.dense_perplexity === null ? null : perplexity(found.dense_perplexity),
    [perplexity(found.perplexity), found.perplexity_low === null ? null : bracketed(`${perplexity(found.perplexity_low)}–${perplexity(found.perplexity_high)}`)],
    found.ratio === null ? null : [ratio(found.ratio), found.ratio_low === null ? null : bracketed(interval(found.ratio_low, found.ratio_high))]]);
  const columns = numbers(["task", "questions", "dense", "accuracy", "share kept", "flips"], 1);
  return [
    texts.length ? table(`Perplexity of ${model}`, numbers(["text", "windows × tokens", "dense", "perplexity", "ratio"], 1), rows) : null,
    tasks.length ? [el("h2", {}, "Tasks"), table(`Tasks of ${model}`, columns, tasks.map((each) => answered(each, shares))),
      el("p", { class: "note" }, "Accuracy on the same questions, ± one standard error. The share kept is of the dense model's accuracy above chance. Flips are answers that became right or wrong.")] : null,
  ];
}

const FRONTIER_NOTE = "Each candidate takes turns with the dense model at each load; the speed of the dense model itself is the noise. 95 % intervals in brackets.";

function candidate(point, loads, domains) {
  const cell = (found) => found && [ratio(found.value), found.low === null ? null : bracketed(interval(found.low, found.high))];
  return [[shortened(point.name), point.is_on_frontier ? el("span", { class: "sub good" }, "on the frontier") : null],
    ...loads.map((load) => cell(point.speeds[load])), ...domains.map((domain) => cell(point.ratios[domain])),
    point.weight_bytes === null ? null : bytes(point.weight_bytes), point.price_per_million_tokens === null ? null : point.price_per_million_tokens.toFixed(2)];
}

function frontier({ model, sentence, points, loads, undecided }) {
  const domains = [...new Set(points.flatMap(({ ratios }) => Object.keys(ratios)))];
  const columns = numbers(["variant", ...Object.values(loads).map((words) => `speed-up ${words}`),
    ...domains.map((domain) => `× perplexity, ${domain}`), "weights", "price of a million tokens"], 1);
  return [el("p", { class: "advice" }, text(sentence)),
    table(`Candidates of ${model}`, columns, points.map((point) => candidate(point, Object.keys(loads), domains))),
    undecided.length ? [el("h2", {}, "Not decided"), el("ul", {}, undecided.map((each) => el("li", {}, text(each))))] : null];
}

const KINDS = {
  bench: { title: "Benchmark", note: BENCH_NOTE, report: bench },
  eval: { title: "Evaluation", note: EVAL_NOTE, report: evaluation },
  frontier: { title: "Frontier", note: FRONTIER_NOTE, report: frontier },
  stability: { title: "Stability", note: null, report: stability },
};

await begin(async () => {
  const found = await json(`/results/${encodeURIComponent(byId("title").dataset.id)}`);
  const { report } = found;
  const kind = KINDS[found.kind];
  const subject = report.model ?? found.model;
  document.title = `${kind.title} of ${subject} · sleb-serve`;
  fill(byId("title"), `${kind.title} of `, shortened(subject));
  fill(byId("facts"), facts([["Written", moment(found.created_at)], ["Blocks", report.num_blocks === undefined ? null : String(report.num_blocks)],
    ["Command", report.command && el("code", { dir: "auto" }, report.command)],
    ["Repeats", report.plan && String(report.plan.repeats)], ["Prompt processing", report.prompt_reading]]));
  fill(byId("report"), kind.note && el("p", { class: "note" }, kind.note), kind.report(report));
  if (found.kind === "stability") drawSpread(report);
  if (report.machine) fill(byId("details"), el("h2", {}, "Machine"), el("pre", { tabindex: 0, role: "region", "aria-label": "Machine" }, JSON.stringify(report.machine, null, 2)));
});
