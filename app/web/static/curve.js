// The curve: quality against speed for all depths and jobs of a model; pick one to serve or export.

import { adviceOn, adviceTable, nextOf, sentenceOf, sidesOf } from "./advice.js";
import { json, post } from "./api.js";
import { command } from "./command.js";
import { bracketed, byId, el, fill, name, say, table } from "./dom.js";
import { empty, noModel } from "./empty.js";
import { count, interval, perplexity, ratio } from "./format.js";
import { act, begin } from "./live.js";
import { csv, ordersOf } from "./orders.js";
import { Plot } from "./plot.js";
import { measure } from "./speeds.js";
import { trajectory } from "./trajectory.js";

const PAGE = 50; // rows of the table
const PROD = "prod"; // the alias that a depth can be given
const query = new URLSearchParams(location.search);
const plot = new Plot(byId("plot"), "Quality against speed; the table below has its values");
let numRows = PAGE;
let orders = [];
let dense = []; // models
let advice = null;

const model = () => byId("model").value;
const domain = () => byId("domain").value;
const isSpeed = () => byId("axis").value === "speed";
const isHealed = (point) => point.repair === "healed";
const pointsOf = (order) => order.points.filter((point) => point.domain === domain());
const label = (order) => [order.name.split("@").at(-1).slice(-6), order.job?.spec.metric].filter(Boolean).join(", ");

/** The name without that of the model: `@-k` in the newest order, and else with the end of the job's id. */
function shortOf(point, order) {
  if (isHealed(point)) return order === orders[0] ? `@-${point.depth}+healed` : `…${point.model.slice(-14)}`;
  return order === orders[0] ? `@-${point.depth}` : `…${order.name.slice(-6)}-${point.depth}`;
}

/** Where a point is on the axis, and the dense model. */
const at = (point) => (isSpeed() ? point.speed?.ratio ?? null : point.depth);
const origin = () => (isSpeed() ? 1 : 0);

/** All places of the axis, sorted. */
function places() {
  const found = orders.flatMap(pointsOf).map(at).filter((x) => x !== null);
  return [...new Set([origin(), ...found])].sort((one, other) => one - other);
}

/** Up to two lines of an order, as served and without its repairs, and the point of what was healed. */
function seriesOf(order, index, xs) {
  const drawn = [];
  const add = (words, isWanted, value, { dash = null, isRaw = false, isHollow = false } = {}) => {
    const depths = pointsOf(order).filter(isWanted).map(({ depth }) => depth).sort((one, other) => one - other);
    const isJoined = depths.every((depth, place) => place === 0 || depth === depths[place - 1] + 1); // no model is between
    const first = depths[0] === 1 ? 1 : null; // and none leads from the dense one to the others
    const found = xs.map((x) => pointsOf(order).find((point) => at(point) === x && isWanted(point)))
      .map((point) => (point ? value(point) : null));
    if (!found.some(Boolean)) return;
    drawn.push({ label: `${label(order)}${words}`, hue: index, dash, format: ratio, isJoined, isHollow,
      values: xs.map((x, place) => (x === origin() ? first : found[place]?.ratio ?? null)),
      bounds: isRaw ? null : found.map((point) => (point && point.low !== null ? [point.low, point.high] : null)) });
  };
  const isRepaired = pointsOf(order).some((point) => point.raw && !isHealed(point));
  add(isRepaired ? ", repaired" : "", (point) => !isHealed(point), (point) => point);
  if (isRepaired) add(", raw", (point) => !isHealed(point), (point) => point.raw ?? point, { dash: [6, 4], isRaw: true });
  add(", healed", isHealed, (point) => point, { dash: [2, 3], isHollow: true });
  return drawn;
}

function draw() {
  const xs = places();
  byId("figure").hidden = xs.length < 2;
  if (xs.length < 2) return;
  byId("what").textContent = `Perplexity on ${domain()}, relative to the dense model`;
  plot.draw({
    x: xs,
    xLabel: isSpeed() ? "speed-up per token, measured or predicted" : "removed blocks",
    xFormat: isSpeed() ? ratio : String,
    xStep: !isSpeed(),
    series: orders.flatMap((order, index) => seriesOf(order, index, xs)),
    onPick: (index) => {
      const found = orders.flatMap(pointsOf).find((point) => at(point) === xs[index]);
      if (found) pick(found.depth);
    },
  });
}

function speedCell(point) {
  const found = point.speed;
  if (!found) return null;
  const range = interval(found.low, found.high);
  return [ratio(found.ratio), range && bracketed(range), el("span", { class: "sub" }, found.how)];
}

const qualityOf = (point) => [ratio(point.ratio),
  point.low === null ? null : bracketed(interval(point.low, point.high))];

/** The newest order, with what was healed of it. */
function newest() {
  const first = orders.find(({ job }) => !job?.source) ?? orders[0];
  return [first, ...orders.filter(({ job }) => job?.source?.startsWith(first.name))].flatMap(({ points }) => points);
}

function showTrajectory() {
  const about = advice?.depths.find((depth) => depth.name === (advice.taken ?? advice.nearest));
  const points = newest();
  const isThere = points.some(({ depth }) => depth === about?.num_removed);
  fill(byId("trajectory"), el("h2", {}, "Newest removal order"),
    trajectory(points, dense.find(({ id }) => id === model())?.num_blocks ?? null, isThere ? about.num_removed : null, pick));
}

function show() {
  showTrajectory();
  draw();
  const rows = orders.flatMap((order) => pointsOf(order).map((point) => [
    [el("button", { "data-key": point.model, onclick: () => pick(point.depth), title: point.model }, name(shortOf(point, order)))],
    String(point.depth), perplexity(point.perplexity), qualityOf(point),
    point.raw ? ratio(point.raw.ratio) : null, point.repair, speedCell(point),
  ]));
  const columns = [{ title: "variant" }, { title: "removed", num: true }, { title: "perplexity", num: true },
    { title: "ratio", num: true }, { title: "ratio, raw", num: true }, { title: "repair" }, { title: "speed-up", num: true }];
  fill(byId("rows"), el("h2", {}, "All variants"), table("Variants of the curve", columns, rows.slice(0, numRows)),
    rows.length > numRows ? el("p", {}, el("button", { "data-key": "more", onclick: () => {
      numRows += PAGE;
      show();
    } }, `Show ${Math.min(PAGE, rows.length - numRows)} of ${rows.length - numRows} more`)) : null);
}

/** Measure it on held-out text, and show the result. */
async function evaluate(variant) {
  byId("measuring").textContent = `Evaluating ${variant} on held-out text, together with the dense model…`;
  try {
    const { id } = await post("/evals", { model: variant }, { timeoutMs: 1800000 });
    location.assign(`/ui/results/${encodeURIComponent(id)}`);
  } finally {
    byId("measuring").textContent = "";
  }
}

/** Give the alias to it, in one step for all clients. */
async function use(variant) {
  await json(`/models/${PROD}`, { method: "PUT", body: { target: variant }, timeoutMs: 600000 });
  byId("measuring").textContent = `Requests for ${PROD} now run on ${variant}.`;
}

function choices(point, order) {
  const sides = new URLSearchParams([["model", model()], ["model", point.model]]);
  return el("div", { class: "card" }, el("p", { title: point.model }, name(shortOf(point, order))),
    el("p", { class: "note" }, `${ratio(point.ratio)} the perplexity on ${point.domain}, ${point.text}. Repair: ${point.repair}.`),
    el("div", { class: "row" },
      el("button", { class: "primary", "data-needs": "admin", onclick: (event) => act(event.target, async () => {
        await post(`/models/${encodeURIComponent(point.model)}/load`, undefined, { timeoutMs: 600000 });
        event.target.textContent = "Loaded";
        say(`${point.model} is loaded`);
      }) }, "Load"),
      el("a", { class: "button", "data-needs": "generate", href: `/ui/compare?${sides}` }, "Side by side"),
      el("button", { "data-needs": "generate", onclick: (event) => act(event.target, () => evaluate(point.model)) }, "Evaluate"),
      el("button", { "data-needs": "admin", title: `Route requests for ${PROD} to this variant`, onclick: (event) => act(event.target, () => use(point.model)) }, `Use as ${PROD}`),
      order.job && el("a", { class: "button", href: `/ui/jobs/${encodeURIComponent(order.job.id)}` }, "Show job")),
    command(`Command that exports ${point.model}`, `sleb export ${point.model} DIRECTORY`));
}

/** Show what can be done with the variants of one depth. */
function pick(depth) {
  const found = orders.flatMap((order) => pointsOf(order).filter((point) => point.depth === depth).map((point) => [point, order]));
  if (!found.length) return;
  fill(byId("picked"), el("h2", { tabindex: -1 }, `Without ${depth} ${depth === 1 ? "block" : "blocks"}`),
    el("div", { class: "sides" }, found.map(([point, order]) => choices(point, order))));
  byId("picked").scrollIntoView({ block: "nearest" });
  byId("picked").firstChild.focus({ preventScroll: true });
}

function save() {
  const head = ["model", "job", "removed", "domain", "text", "perplexity", "dense_perplexity", "ratio", "ratio_low",
    "ratio_high", "repair", "raw_perplexity", "speedup", "speedup_low", "speedup_high", "speedup_how"];
  const rows = orders.flatMap((order) => order.points.map((point) => {
    const speed = point.speed ?? {};
    return [point.model, order.job?.id, point.depth, point.domain, point.text, point.perplexity, point.dense, point.ratio,
      point.low, point.high, point.repair, point.raw?.perplexity ?? point.perplexity, speed.ratio, speed.low, speed.high, speed.how];
  }));
  const url = URL.createObjectURL(new Blob([csv([head, ...rows])], { type: "text/csv" }));
  el("a", { href: url, download: `${model()}-curve.csv` }).click();
  URL.revokeObjectURL(url);
}

async function measureAll() {
  const variants = new Map(orders.flatMap((order) => order.points.map((point) => [point.depth, point.model])));
  const sorted = [...variants].sort(([one], [other]) => one - other).map(([, each]) => each);
  byId("measuring").textContent = `Measuring ${count(sorted.length, "depth")}, each at least five times, in turn with the dense model…`;
  try {
    await measure(model(), sorted, async (done) => {
      orders = await ordersOf(model());
      byId("measuring").textContent = `Measured ${done} of ${count(sorted.length, "depth")}.`;
      byId("axis").value = "speed";
      show();
    });
  } finally {
    byId("measuring").textContent = "Measured with outputs of 32 tokens. Intervals include the noise of the dense model against itself. Speed-ups known only within a factor of 2 are not saved.";
    await showAdvice();
  }
}

async function showAdvice() {
  advice = await adviceOn(model());
  const isKnown = advice?.depths.some((depth) => depth.num_removed > 0 || depth.is_measured);
  fill(byId("advice"), isKnown ? [sentenceOf(advice), advice.taken ? el("p", { class: "row" }, sidesOf(model(), advice.taken, "primary")) : null, nextOf(advice)] : null);
  fill(byId("limits"), isKnown ? el("details", {}, el("summary", {}, "All variants and the limits"), adviceTable(advice)) : null);
}

async function choose() {
  orders = await ordersOf(model());
  fill(byId("picked"));
  numRows = PAGE;
  const domains = [...new Set(orders.flatMap((order) => order.points.map((point) => point.domain)))];
  const before = domain();
  fill(byId("domain"), domains.map((each) => el("option", { selected: each === before }, each)));
  for (const id of ["all", "measure", "csv", "trajectory"]) byId(id).hidden = orders.length === 0;
  const submit = el("a", { "data-needs": "jobs", href: `/ui/jobs/new?${new URLSearchParams({ model: model() })}` }, "Submit a job");
  fill(byId("empty"), orders.length ? null
    : empty("No job has measured this model yet. A pruning job measures the whole curve:", el("p", {}, submit)));
  await showAdvice();
  if (orders.length) show();
  else { byId("figure").hidden = true; fill(byId("rows")); }
  history.replaceState(null, "", `/ui/curve?${new URLSearchParams({ model: model() })}`);
}

await begin(async () => {
  dense = (await json("/models")).data.filter((each) => each.variant === "dense");
  if (!dense.length) {
    fill(byId("rows"));
    return fill(byId("empty"), noModel());
  }
  fill(byId("model"), dense.map((each) => el("option", { selected: each.id === query.get("model") }, each.id)));
  byId("tools").hidden = false;
  byId("model").addEventListener("change", () => begin(choose));
  byId("domain").addEventListener("change", show);
  byId("axis").addEventListener("change", show);
  byId("csv").addEventListener("click", save);
  byId("measure").addEventListener("click", () => act(byId("measure"), measureAll));
  await choose();
});
