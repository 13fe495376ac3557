// Two to four variants side by side: the same prompts, streaming, and the paired verdict on speed.

import { json, post, Problem } from "./api.js";
import { byId, el, facts, fill, name, say, table, text } from "./dom.js";
import { noModel } from "./empty.js";
import { count, interval, number, ratio, seconds } from "./format.js";
import { act, begin } from "./live.js";
import { generate } from "./streams.js";

const MIN_SIDES = 2;
const MAX_SIDES = 4;
const MAX_PROMPTS = 8;
const REPEATS = 5;
const TIMEOUT_MS = 1800000;
const NUMBERS = ["max_new_tokens", "temperature", "top_p", "seed"];
const EXAMPLE = "The sea is";

let names = [];
let running = null;

const sides = () => [...byId("models").querySelectorAll("select")].map((select) => select.value);
const prompts = () => [...byId("prompts").querySelectorAll("textarea")].map((area) => area.value).filter((prompt) => prompt !== "");
const isChat = () => byId("chat").checked;

function sampling() {
  const given = NUMBERS.filter((id) => byId(id).value !== "");
  return Object.fromEntries(given.map((id) => [id, Number(byId(id).value)]));
}

/** The settings as the query of a link. */
function settings() {
  const pairs = [...sides().map((side) => ["model", side]), ...prompts().map((prompt) => ["prompt", prompt]),
    ...NUMBERS.map((id) => [id, byId(id).value]).filter(([, value]) => value !== "")];
  if (isChat()) pairs.push(["chat", "1"]);
  return new URLSearchParams(pairs);
}

function changed() {
  const numSides = sides().length;
  byId("more").disabled = numSides >= MAX_SIDES;
  byId("another").disabled = byId("prompts").children.length >= MAX_PROMPTS;
  byId("verdict").disabled = isChat();
  byId("verdict").title = isChat() ? "Comparisons take plain prompts." : "";
  byId("link").href = `/ui/compare?${settings()}`;
}

function addSide(chosen) {
  const number_ = byId("models").children.length + 1;
  const id = `side-${number_}`;
  const label = number_ === 1 ? "variant 1, the baseline" : `variant ${number_}`;
  byId("models").append(el("div", {}, el("label", { for: id }, label),
    el("select", { id }, names.map((each) => el("option", { selected: each === chosen }, each)))));
}

function addPrompt(value) {
  const id = `prompt-${byId("prompts").children.length + 1}`;
  const area = el("textarea", { id, rows: 3, dir: "auto" });
  area.value = value;
  byId("prompts").append(el("div", {}, el("label", { for: id }, id.replace("-", " ")), area));
}

/** One output: its text as it comes, and its numbers. */
class Output {
  constructor(side, label) {
    this.side = side;
    this.content = "";
    this.body = el("div", { class: "output", tabindex: 0, role: "region", "aria-label": label });
    this.numbers = el("div", { class: "note" }, "waits");
    this.node = el("article", { class: "card" }, el("h3", {}, name(side)), this.body, this.numbers);
  }

  /** Show the text, with the first character marked that differs from the baseline's. */
  show(baseline) {
    const at = baseline === this || baseline === undefined ? null : firstDifference(baseline.content, this.content, baseline.isOver && this.isOver);
    if (at === null) return fill(this.body, text(this.content));
    const rest = [...this.content.slice(at)];
    fill(this.body, el("span", { class: "text", dir: "auto" }, this.content.slice(0, at),
      el("mark", { title: "the first difference from the baseline" }, rest[0] ?? "∎"), rest.slice(1).join("")));
  }

  finish({ reason, promptTokens, tokens, ttftS, tpotS }) {
    fill(this.numbers, facts([["tokens", `${promptTokens ?? "–"} of the prompt, ${tokens ?? "–"} generated`],
      ["TTFT", seconds(ttftS)], ["TPOT", seconds(tpotS)], ["ended by", reason]]));
  }
}

/** Where two texts differ; null if one continues the other so far, or if they are equal. */
function firstDifference(one, other, areOver) {
  const length = Math.min(one.length, other.length);
  let at = 0;
  while (at < length && one[at] === other[at]) at += 1;
  if (at === length && !(areOver && one.length !== other.length)) return null;
  const isLow = at > 0 && /[\uDC00-\uDFFF]/.test(other[at] ?? "");
  return isLow ? at - 1 : at; // not inside of a pair of surrogates
}

async function fillOutput(output, outputs, prompt, signal) {
  const redraw = () => outputs.forEach((each) => each.show(outputs[0]));
  output.isOver = false;
  try {
    for await (const { text: delta, done } of generate({ model: output.side, prompt, sampling: sampling(), isChat: isChat(), signal })) {
      if (delta && output.content === "") fill(output.numbers, "generates");
      if (delta) output.content += delta;
      if (done) { output.isOver = true; output.finish(done); }
      scheduled(redraw);
    }
  } catch (error) {
    if (signal.aborted) return fill(output.numbers, "stopped");
    if (!(error instanceof Problem)) throw error;
    fill(output.numbers, el("p", { class: "error" }, el("strong", {}, error.title), " ", error.message));
  }
}

const waiting = new Set();
/** Draw at most once a frame, however fast tokens come. */
function scheduled(redraw) {
  if (waiting.has(redraw)) return;
  waiting.add(redraw);
  requestAnimationFrame(() => { waiting.delete(redraw); redraw(); });
}

async function run() {
  history.replaceState(null, "", byId("link").href);
  fill(byId("result"));
  fill(byId("outputs")); // new ones, even if they begin like the last
  running = new AbortController();
  byId("stop").disabled = false;
  const rows = prompts().map((prompt, row) => ({ prompt,
    outputs: sides().map((side, index) => new Output(side, `Output ${index + 1} of prompt ${row + 1}, by ${side}`)) }));
  fill(byId("outputs"), rows.map(({ prompt, outputs }, index) => el("section", {},
    el("h2", {}, rows.length > 1 ? `Prompt ${index + 1}` : "Outputs"), rows.length > 1 ? el("p", {}, text(prompt)) : null,
    el("div", { class: "sides" }, outputs.map((output) => output.node)))),
  el("p", { class: "note" }, "All run at the same time and share the engine, so these times do not compare them: Compare speed takes turns."));
  try {
    for (const { prompt, outputs } of rows) {
      if (running.signal.aborted) break;
      await Promise.all(outputs.map((output) => fillOutput(output, outputs, prompt, running.signal)));
    }
    say("All outputs have ended");
  } finally {
    const isLeft = document.activeElement === byId("stop"); // a disabled button has no focus
    byId("stop").disabled = true;
    if (isLeft) byId("run").focus();
  }
}

const speedOf = (found) => (found === null ? null : [ratio(found.ratio),
  el("span", { class: "sub" }, found.low === null ? "" : `[${interval(found.low, found.high)}]`)]);

const verdictOf = (found) => (found === null ? null : [found.verdict, el("span", { class: "sub" }, found.reason)]);

function resultOf(found) {
  const columns = [{ title: "variant" }, { title: "time per token", num: true }, { title: "verdict" },
    { title: "time to first token", num: true }, { title: "equal tokens", num: true }, { title: "log-probability gap", num: true }];
  const rows = found.results.map((each) => [name(each.model), speedOf(each.tpot), verdictOf(each.tpot), speedOf(each.ttft),
    `${Math.round(each.agreement * 100)} %`, each.logprob_gap === null ? null : `${number(each.logprob_gap, 3)} nats`]);
  const differences = found.prompts.flatMap(({ index, outputs }) => outputs.filter((output) => output.first_divergence)
    .map((output) => difference(index, output)));
  return [el("h2", {}, "Speed-up over ", name(found.baseline)), table("Result of the comparison", columns, rows),
    el("p", { class: "note" }, `${count(found.repeats, "repeat")} in alternating turns; in brackets, the 95 % interval.`, ...floorOf(found.control)),
    differences.length ? el("ul", {}, differences) : null];
}

/** What equal models read. */
const floorOf = (control) => (control === null || control.tpot === null ? [] : [" The baseline against itself, measured in the same way: ",
  ratio(control.tpot.ratio), ` [${interval(control.tpot.low, control.tpot.high)}], ${Math.round(control.agreement * 100)} % equal tokens.`,
  " A speed-up that overlaps this interval has no verdict."]);

function difference(index, { model, first_divergence: { position, baseline, model: other } }) {
  const token = (found) => (found ? el("code", { dir: "auto" }, JSON.stringify(found.token)) : "its end");
  return el("li", {}, `Prompt ${index + 1}, `, name(model), `: token ${position + 1} is `, token(other), ", the baseline's is ", token(baseline));
}

async function compare() {
  fill(byId("result"), el("p", { class: "note", role: "status" }, `Each of ${count(sides().length, "variant")} generates ${REPEATS} times, in turns.`));
  try {
    const found = await post("/compare", { models: sides(), prompt: prompts(), repeats: REPEATS, ...sampling() }, { timeoutMs: TIMEOUT_MS });
    fill(byId("result"), resultOf(found));
  } catch (error) {
    fill(byId("result"));
    throw error;
  }
}

/** Two different variants to begin with: the first dense model, and its deepest variant. */
function defaults(models) {
  const dense = models.find((model) => model.variant === "dense" && models.some((other) => other.parent === model.id)) ?? models[0];
  const pruned = models.filter((model) => model.parent === dense.id).at(-1) ?? dense;
  return [dense.id, pruned.id];
}

function restore(query, models) {
  const asked = query.getAll("model").slice(0, MAX_SIDES);
  names.push(...asked.filter((each) => !names.includes(each))); // of a depth that the list leaves out
  const chosen = asked.length >= MIN_SIDES ? asked : defaults(models);
  byId("models").removeAttribute("aria-busy");
  chosen.forEach(addSide);
  const given = query.getAll("prompt").slice(0, MAX_PROMPTS);
  (given.length ? given : [EXAMPLE]).forEach(addPrompt);
  for (const id of NUMBERS) if (query.has(id)) byId(id).value = query.get(id);
  byId("chat").checked = query.has("chat");
}

await begin(async () => {
  const models = (await json("/models")).data.filter((model) => model.error === null);
  names = models.map((model) => model.id);
  if (!models.length) {
    fill(byId("form"), noModel());
  } else {
    restore(new URLSearchParams(location.search), models);
    changed();
    byId("form").addEventListener("input", changed);
    byId("form").addEventListener("submit", (event) => { event.preventDefault(); act(byId("run"), run); });
    byId("stop").addEventListener("click", () => running?.abort());
    byId("verdict").addEventListener("click", () => act(byId("verdict"), compare));
    byId("more").addEventListener("click", () => { addSide(names[0]); changed(); byId("models").lastChild.lastChild.focus(); });
    byId("another").addEventListener("click", () => { addPrompt(""); changed(); byId("prompts").lastChild.lastChild.focus(); });
  }
});
