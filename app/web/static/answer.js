// The answer about a model: what to take under a load and within limits, and a picture of all candidates.

import { adviceOn, nextOf, sentenceOf, sidesOf } from "./advice.js";
import { el, fill, say, shortened } from "./dom.js";
import { interval, ratio, shortName } from "./format.js";
import { gain } from "./gain.js";

const PAUSE_MS = 200; // of a person who types, after which the answer is asked for

/** The quantized weights of a candidate, or null for plain ones. */
const weightsOf = (depth) => (depth.is_int8 ? "int8" : null);
const isQuantized = (depth) => weightsOf(depth) !== null;

/** The candidates that no other list has: those with quantized weights of which something is known. */
export const quantized = (advice) => advice.depths.filter((depth) => isQuantized(depth) && (depth.speedup || Object.keys(depth.ratios).length > 0));

/** Loads are sorted by name, as the answer has that first which was asked for. */
const placeOf = ({ name }) => (name === "stream" ? 1 : name === "prompt" ? Infinity : Number(name));

function numberField(words, unit, attributes) {
  const input = el("input", { type: "number", required: true, ...attributes });
  return { input, label: el("label", {}, el("span", {}, words), input, el("span", {}, unit)) };
}

/** The load and the limits of a person, each of which changes the answer at once. */
class Controls {
  constructor(base, onChange) {
    this.load = el("select", { class: "narrow", "aria-label": `Load of ${base}` });
    this.loads = el("label", {}, el("span", {}, "Load"), this.load);
    this.ratio = numberField("At most", "% more perplexity", { min: 0, max: 1e6, step: "any" });
    this.speedup = numberField("At least", "× as fast", { min: 1, max: 1e6, step: "any" });
    this.tasks = numberField("At least", "% of the task accuracy", { min: 0, max: 100, step: "any", required: false, placeholder: "any" });
    this.node = el("form", { class: "limits", "aria-label": `Load and limits of ${base}`, onsubmit: (event) => event.preventDefault(), oninput: onChange },
      this.loads, this.ratio.label, this.speedup.label, this.tasks.label);
    this.isShown = false;
  }

  get isValid() {
    return !this.isShown || this.node.checkValidity(); // the fields are empty before the first answer
  }

  /** What is asked for, as the parameters of the request; nothing before the first answer. */
  get asked() {
    if (!this.isShown) return {};
    const share = this.tasks.input.value === "" ? {} : { min_task_share: Number(this.tasks.input.value) / 100 };
    const load = this.load.value === "" ? {} : { load: this.load.value };
    return { max_ratio: 1 + Number(this.ratio.input.value) / 100, min_speedup: Number(this.speedup.input.value), ...share, ...load };
  }

  /** Where there is no answer, the load may be what cannot be answered about. */
  forget() {
    fill(this.load);
  }

  show({ loads, limits, depths }) {
    const chosen = loads[0].name;
    fill(this.load, loads.toSorted((one, other) => placeOf(one) - placeOf(other)).map(({ name, words }) =>
      el("option", { value: name, selected: name === chosen }, words.replace(/^(at|on) (a )?/, ""))));
    this.loads.hidden = loads.length < 2;
    this.tasks.label.hidden = !depths.some(({ tasks }) => tasks !== null);
    if (this.isShown) return;
    this.ratio.input.value = Number((100 * (limits.max_ratio - 1)).toPrecision(4));
    this.speedup.input.value = limits.min_speedup;
    this.isShown = true;
  }
}

/** How the picture marks what is advised, or else what is nearest to the limits. */
const markOf = ({ name }, advice) => (name === advice.taken ? "taken" : name === advice.nearest ? "taken nearest" : null);

function pointOf(depth, advice, [domain, cost]) {
  const short = shortName(depth.short_name);
  return { depth: depth.num_removed, speed: depth.speedup.value, cost: cost.value, low: cost.low, high: cost.high, short, mark: markOf(depth, advice),
    title: `${short}: ${ratio(depth.speedup.value)} as fast, ${ratio(cost.value)} the perplexity on ${domain}` };
}

/** A line whose last point has its name in that of the line. */
function named(kind, points, words) {
  const last = points.at(-1);
  return { kind, words: last ? words(last) : "", points: points.map((point) => (point === last ? { ...point, short: "" } : point)) };
}

/** A line without names of its points. */
const unnamed = (kind, points, words) => ({ kind, words, points: points.map((point) => ({ ...point, short: "" })) });

/** The domain with the highest ratio, and that ratio. */
const worstOf = (ratios) => Object.entries(ratios).reduce((one, other) => (other[1].value > one[1].value ? other : one));

/** What a model without its repair costs, by the domain. */
const rawOf = (model) => Object.fromEntries(model.domains.map((found) =>
  [found.domain, { value: found.raw_ratio, low: found.raw_ratio_low, high: found.raw_ratio_high }]));

function picture(models, advice) {
  const byName = new Map(models.map((model) => [model.id, model]));
  const known = advice.depths.filter((depth) => depth.speedup && Object.keys(depth.ratios).length > 0)
    .toSorted((one, other) => one.num_removed - other.num_removed);
  const plain = known.filter((depth) => !isQuantized(depth));
  const depths = plain.filter((depth) => !depth.is_healed && depth.short_name.startsWith("@-"));
  const healed = Map.groupBy(plain.filter((depth) => depth.is_healed), ({ name }) => byName.get(name)?.checkpoint);
  const repaired = depths.filter(({ name }) => byName.get(name)?.repair);
  const points = (found) => found.map((depth) => pointOf(depth, advice, worstOf(depth.ratios)));
  return gain(`Speed and perplexity of the variants of ${advice.model}`, [
    named("served", points(depths), ({ short }) => `${short} ${repaired.length ? "repaired" : "pruned"}`),
    unnamed("raw", repaired.map((depth) => ({ ...pointOf(depth, advice, worstOf(rawOf(byName.get(depth.name)))), mark: null })), "unrepaired"),
    ...[...Map.groupBy(known.filter(isQuantized), weightsOf)].map(([kind, found]) => named(kind, points(found), ({ short }) => short)),
    ...[...healed.values()].map((found, index) => unnamed("healed", points(found), index ? "" : "healed")),
  ], advice.limits, advice.loads[0].words);
}

const stat = (value, words) => el("div", {}, el("dt", {}, words), el("dd", {}, value));

/** A ratio with how sure it is. */
const known = ({ value, low, high }, words) => stat(ratio(value), [words, low === null ? null : [", ", el("span", { class: "whole" }, interval(low, high))]]);

/** The figures of what the advice takes, or else of the nearest, to be read from afar. */
function stats(advice) {
  const about = advice.depths.find(({ name }) => name === (advice.taken ?? advice.nearest));
  if (!about) return null;
  const costs = Object.keys(about.ratios).length ? worstOf(about.ratios) : null;
  return [advice.taken ? null : el("p", { class: "note" }, "The closest, ", shortened(about.short_name), ":"), el("dl", { class: "stats" },
    about.speedup && known(about.speedup, `speed-up ${advice.loads[0].words}, ${about.is_measured ? "measured" : "predicted"}`),
    costs && known(costs[1], `perplexity on ${costs[0]}, the worst text`),
    about.parameters === null || about.num_removed === 0 ? null : stat(`${Math.round((1 - about.parameters) * 100)} %`, "fewer parameters"))];
}

/** Drawn again part by part, so that a person can type in the controls meanwhile. */
export class Answer {
  constructor(base, onChange, measure) {
    this.base = base;
    this.measure = measure;
    this.advice = null;
    this.lastAsked = 0;
    this.said = el("div");
    this.picture = el("div");
    this.links = el("p", { class: "row" });
    let timer = null;
    this.controls = new Controls(base, () => {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        if (await this.ask()) {
          onChange();
          say(this.advice.sentence);
        }
      }, PAUSE_MS);
    });
    this.node = el("div", { class: "answer" }, el("div", {}, this.said, this.controls.node, this.links), this.picture);
  }

  /** Ask for the answer within the limits that are set. Returns whether there is a new one. */
  async ask() {
    if (!this.controls.isValid) return false; // the browser marks the field
    this.lastAsked += 1;
    const number = this.lastAsked;
    const advice = await adviceOn(this.base, this.controls.asked);
    if (number !== this.lastAsked) return false; // a later question is under way
    this.advice = advice;
    return advice !== null;
  }

  show(models) {
    const { advice, base } = this;
    const query = new URLSearchParams({ model: base });
    const sides = advice?.taken ?? advice?.nearest;
    this.controls.node.hidden = advice === null;
    if (advice === null) this.controls.forget();
    else this.controls.show(advice);
    fill(this.said, advice && [sentenceOf(advice), stats(advice), nextOf(advice, this.measure)]);
    fill(this.links, sides ? sidesOf(base, sides, advice.taken ? "primary" : "") : null,
      el("a", { class: "button", "data-needs": "jobs", href: `/ui/curve?${query}` }, "All depths"),
      el("a", { class: "button", "data-needs": "jobs", href: `/ui/jobs/new?${query}` }, "New job"));
    fill(this.picture, advice && picture(models, advice));
  }
}
