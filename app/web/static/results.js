// The results that the data directory keeps, and the agreement of shadow traffic as it grows.

import { json, request } from "./api.js";
import { byId, el, fill, shortened, table, text } from "./dom.js";
import { commands, empty } from "./empty.js";
import { count, interval, moment, ratio, shortName } from "./format.js";
import { poll } from "./live.js";
import { pairsOf, samplesOf } from "./shadow.js";

const PAGE = 20;
let numPages = 1;

async function pages() {
  const found = { data: [], has_more: true };
  for (let index = 0; index < numPages && found.has_more; index += 1) {
    const query = new URLSearchParams({ limit: PAGE });
    if (found.data.length) query.set("after", found.data.at(-1).id);
    const page = await json(`/results?${query}`);
    found.data.push(...page.data);
    found.has_more = page.has_more;
  }
  return found;
}

const COLUMNS = ["result", "model", "found", "written"].map((title) => ({ title }));

const KINDS = { bench: "benchmark", eval: "evaluation" };

const row = ({ id, kind, model, headline, created_at: at }) => [
  el("a", { href: `/ui/results/${encodeURIComponent(id)}`, "data-key": id }, KINDS[kind] ?? kind),
  shortened(model), headline.split("; ").map((part) => text(shortName(part))), moment(at),
];

const none = () => empty("No results yet. Measure the speed-up of a variant, or how much the choice of blocks depends on the text:",
  commands("sleb bench MODEL --variants @-3", "sleb stability MODEL --num-remove 3 --out stability"));

const share = (value) => (value === null ? null : `${(value * 100).toFixed(1)} %`);

function shadow(samples) {
  const { pairs, dropped } = pairsOf(samples);
  if (!pairs.length && !dropped.length) {
    return empty("No outputs replayed yet. Start the service with a share of outputs to replay, then generate with a pruned variant:",
      commands("SLEB_SHADOW_SHARE=0.1 sleb up"));
  }
  const columns = ["live", "compared with", "compared", "equal tokens", "equal outputs", "speed-up per token", "control", "verdict"]
    .map((title, index) => ({ title, num: index > 1 && index < 7 }));
  const rows = pairs.map((pair) => [shortened(pair.live), shortened(pair.shadow), String(pair.done),
    [share(pair.agreement), pair.floor === null ? null : el("span", { class: "sub" }, `${share(pair.floor)} with itself`)], share(pair.whole),
    reading(pair.speedup, "pair"), reading(pair.control, "control"), verdictOf(pair)]);
  return [pairs.length ? table("Pairs of shadow traffic", columns, rows) : null,
    dropped.length ? el("p", { class: "note" }, "Not replayed: ", dropped.map(({ model, reason, number }) => `${number} of ${model} (${reason})`).join(", "), ".") : null,
    pairs.length ? el("p", { class: "note" }, "Speed-up of the variant with fewer blocks, from the last pairs whose two replays each ran alone on the engine"
      + `${pairs.some(({ numCached }) => numCached > 0) ? "" : " and processed the prompt in full"}; `
      + "95 % intervals in brackets. The control compares a model with itself in the same way: a speed-up that overlaps its interval has no verdict.") : null];
}

const reading = ({ ratio: found, low, high, number }, what) => (found === null ? null : [ratio(found),
  el("span", { class: "sub" }, low === null ? "" : `[${interval(low, high)}] `, count(number, what))]);

const verdictOf = ({ verdict, numDifferent }) => (verdict === null && !numDifferent ? null : [verdict ?? "undecided",
  numDifferent ? el("span", { class: "sub" }, `different kernels in ${count(numDifferent, "pair")}`) : null]);

const refresh = poll(async () => {
  const [found, metrics] = await Promise.all([pages(), request("/metrics", { headers: { Accept: "text/plain" } })]);
  fill(byId("list"), found.data.length ? table("Results", COLUMNS, found.data.map(row)) : none(),
    found.has_more ? el("p", {}, el("button", { "data-key": "more", onclick: () => {
      numPages += 1;
      refresh();
    } }, "Show older results")) : null);
  fill(byId("shadow"), shadow(samplesOf(await metrics.text())));
}, 5);
