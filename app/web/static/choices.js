// The choices on the first screen of a new job: how far, by a slider, and how thoroughly.

import { byId, el } from "./dom.js";
import { count, ratio } from "./format.js";

const QUICK = { "calibration.num_samples": 8, "calibration.seqlen": 64, "evaluation.margin": 0.05, "evaluation.max_seconds": 45 };
const KINDS = [
  { id: "quick", title: "Quick", note: "Less text: minutes on a laptop, with wider intervals.", values: QUICK, heals: false },
  { id: "thorough", title: "Thorough", note: "More text: a more reliable order and narrow intervals.", values: {}, heals: false },
  { id: "healing", title: "With healing", note: "Thorough, then trained to match the dense model's predictions.", values: {}, heals: true },
];
const SHARE = 0.2; // of the blocks, to begin with

/** How thoroughly: each kind sets fields that are under Advanced, and whether the job heals. */
export function kinds(onChoose) {
  return el("fieldset", {}, el("legend", {}, "Thoroughness"), KINDS.map(({ id, title, note, values, heals }) =>
    el("p", { class: "kind" }, el("label", { for: id }, el("input", { type: "radio", name: "kind", id, checked: id === "thorough",
      "aria-describedby": `${id}-note`, oninput: () => onChoose(Object.fromEntries(Object.keys(QUICK).map((path) => [path, values[path]])), heals) }), title),
    el("span", { class: "sub", id: `${id}-note` }, note))));
}

/** No kind is chosen: the settings are those of another job. */
export function noKind() {
  for (const { id } of KINDS) byId(id).checked = false;
}

/** A slider beside the field of the number of blocks. */
export class Depth {
  constructor(field) {
    this.field = field;
    this.slider = el("input", { type: "range", id: "slider", min: 1, value: 1, "aria-label": "Blocks to remove, slider", "aria-describedby": "expected",
      oninput: () => { field.input.value = this.slider.value; } });
    this.expected = el("p", { class: "expected", id: "expected" });
    this.node = el("div", {}, field.node, this.slider, this.expected);
  }

  /** The start for a model with so many blocks, of which `free` can go. */
  begin(numBlocks, free) {
    this.field.value = Math.min(Math.max(1, Math.round(numBlocks * SHARE)), Math.max(free, 1));
  }

  show(numBlocks, free, variants, dense) {
    this.slider.max = Math.max(free, 1);
    const depth = Number(this.field.input.value);
    if (depth > 0) this.slider.value = depth;
    this.expected.replaceChildren(...(depth > 0 && depth < numBlocks ? expected(depth, numBlocks, variants, dense) : []));
  }
}

/** What so many removals give, by an earlier job of the model or else by the number of blocks. */
function expected(depth, numBlocks, variants, dense) {
  const known = variants.find((model) => numBlocks - model.num_blocks === depth && (model.measured_speedup ?? model.predicted_speedup));
  const speed = known?.measured_speedup?.ratio ?? known?.predicted_speedup;
  const how = known?.measured_speedup ? "measured here" : "predicted by an earlier job";
  const other = variants.find((model) => model.num_parameters && model.num_blocks < numBlocks);
  const share = other && dense.num_parameters
    ? (depth * (dense.num_parameters - other.num_parameters)) / (numBlocks - other.num_blocks) / dense.num_parameters : null;
  return [el("strong", {}, speed ? ratio(speed) : `up to ${ratio(numBlocks / (numBlocks - depth))}`), " speed-up per token ",
    el("span", { class: "muted" }, speed ? `(${how})` : "(from the number of blocks)"),
    share ? `, ${Math.round(share * 100)} % fewer parameters` : "", ` with ${count(numBlocks - depth, "block")} of ${numBlocks}.`];
}
