// Which depth of a model to take: a sentence and a table, as the service advises.

import { json } from "./api.js";
import { bracketed, el, name, table } from "./dom.js";
import { interval, ratio, shortName, unbroken } from "./format.js";

const KEEPS = { kept: "all", exceeded: "not: ", undecided: "undecided: " };

/** The advice for a dense model, or null where there is none: it is gone, or may not be seen. */
export const adviceOn = (model) => json(`/models/${encodeURIComponent(model)}/advice`).catch(() => null);

const cell = (found) => (found ? [ratio(found.value), found.low === null ? null : bracketed(interval(found.low, found.high))] : null);

/** The sentence, with the short name of what is to be taken. */
export function sentenceOf(advice) {
  if (advice.taken === null) {
    const [first, ...rest] = unbroken(advice.sentence).split(/(?<=\)\.) /);
    return el("p", { class: "advice" }, el("strong", {}, first), rest.length ? ` ${rest.join(" ")}` : "");
  }
  const [before, after] = advice.sentence.split(advice.taken, 2);
  return el("p", { class: "advice" }, before, el("strong", { title: advice.taken }, name(shortName(advice.taken))), unbroken(after));
}

/** A button that leads to a variant beside the dense model. */
export function sidesOf(dense, variant, tone = "") {
  const sides = new URLSearchParams([["model", dense], ["model", variant]]);
  return el("a", { class: `button ${tone}`, "data-needs": "generate", href: `/ui/compare?${sides}` }, "Compare with dense");
}

/** A sentence whose commands are in backticks. */
const marked = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

/** What is not known, with the command that measures it. */
export const missingOf = (advice) => advice.missing.map((text) => el("p", { class: "note" }, "Missing: ", marked(text), "."));

const probeOf = ({ probe_score: score, dense_probe_score: dense }) => (score === null ? null : `${score.toFixed(2)} of ${dense.toFixed(2)}`);

/** Every depth with what it gives and costs, against the limits. */
export function adviceTable(advice) {
  const domains = [...new Set(advice.depths.flatMap(({ ratios }) => Object.keys(ratios)))];
  const isProbed = advice.depths.some(({ probe_score: score }) => score !== null);
  const columns = [{ title: "depth" }, { title: "blocks", num: true }, { title: "speed-up", num: true },
    ...domains.map((domain) => ({ title: `× perplexity, ${domain}`, num: true })), ...(isProbed ? [{ title: "probe", num: true }] : []), { title: "meets limits" }];
  const rows = advice.depths.map((depth) => [
    [el("span", { title: depth.name }, name(shortName(depth.short_name))), depth.name === advice.taken ? el("span", { class: "sub good" }, "recommended") : null],
    String(depth.num_blocks),
    depth.speedup && [...cell(depth.speedup), el("span", { class: "sub" }, depth.is_measured ? "measured" : "predicted")],
    ...domains.map((domain) => cell(depth.ratios[domain])),
    ...(isProbed ? [probeOf(depth)] : []),
    el("span", { title: depth.because }, `${KEEPS[depth.verdict]}${depth.failing.join(", ")}`),
  ]);
  const { max_ratio: most, min_speedup: least } = advice.limits;
  return [advice.depths.length ? table(`Depths of ${advice.model}`, columns, rows) : null,
    el("p", { class: "note" }, `Limits: at most ${most} × the dense perplexity on every text, and a speed-up of at least ${least} ×. For other limits, run `, el("code", {}, `sleb advise ${advice.model} --max-ratio 1.2 --min-speedup 1.05`), ".")];
}
