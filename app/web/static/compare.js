// Two to four variants side by side: the same prompts, streaming, and the paired verdict on speed.

import { json, Problem } from "./api.js";
import { byId, el, fill, say, shortened, table, text } from "./dom.js";
import { noModel } from "./empty.js";
import { count, interval, number, ratio, shortName } from "./format.js";
import { act, begin } from "./live.js";
import { Output } from "./outputs.js";
import { compared, generate } from "./streams.js";

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
  byId("verdict").title = isChat() ? "Compare speed supports only plain prompts." : "";
  byId("link").href = `/ui/compare?${settings()}`;
}

function addSide(chosen) {
  const number_ = byId("models").children.length + 1;
  const id = `side-${number_}`;
  const label = number_ === 1 ? "variant 1, the baseline" : `variant ${number_}`;
  byId("models").append(el("div", {}, el("label", { for: id }, label),
    el("select", { id }, names.map((each) => el("option", { value: each, selected: each === chosen }, shortName(each))))));
}

function addPrompt(value) {
  const id = `prompt-${byId("prompts").children.length + 1}`;
  const area = el("textarea", { id, rows: 3, dir: "auto" });
  area.value = value;
  byId("prompts").append(el("div", {}, el("label", { for: id }, id.replace("-", " ")), area));
}

/** The texts of all prompts below each other, those of a prompt side by side. */
const sections = (rows, note) => [rows.map(({ prompt, outputs }, index) => el("section", {},
  el("h2", {}, rows.length > 1 ? `Prompt ${index + 1}` : "Outputs"), rows.length > 1 ? el("p", {}, text(prompt)) : null,
  el("div", { class: "sides" }, outputs.map((output) => output.node)))),
el("p", { class: "note" }, note)];

const outputsOf = (models, row) => models.map((side, index) => new Output(side, `Output ${index + 1} of prompt ${row + 1}, by ${side}`));

async function fillOutput(output, outputs, prompt, signal) {
  const redraw = () => outputs.forEach((each) => each.show(outputs[0]));
  try {
    for await (const { text: delta, done } of generate({ model: output.side, prompt, sampling: sampling(), isChat: isChat(), signal })) {
      if (delta && output.content === "") fill(output.numbers, "generating");
      if (delta) output.content += delta;
      if (done) output.finish(done);
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
  const rows = prompts().map((prompt, row) => ({ prompt, outputs: outputsOf(sides(), row) }));
  fill(byId("outputs"), sections(rows, "Words that are not in the baseline's text are marked. All variants run at the same time and share the engine, so these times are not comparable: use Compare speed."));
  try {
    for (const { prompt, outputs } of rows) {
      if (running.signal.aborted) break;
      await Promise.all(outputs.map((output) => fillOutput(output, outputs, prompt, running.signal)));
    }
    say("All outputs are complete");
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
  const rows = found.results.map((each) => [shortened(each.model), speedOf(each.tpot), verdictOf(each.tpot), speedOf(each.ttft),
    `${Math.round(each.agreement * 100)} %`, each.logprob_gap === null ? null : `${number(each.logprob_gap, 3)} nats`]);
  const differences = found.prompts.flatMap(({ index, outputs }) => outputs.filter((output) => output.first_divergence)
    .map((output) => difference(index, output)));
  return [el("h2", {}, "Speed-up over ", shortened(found.baseline)), table("Result of the comparison", columns, rows),
    el("p", { class: "note" }, `${count(found.repeats, "repeat")} in alternating turns; 95 % intervals in brackets.`, ...floorOf(found.control)),
    differences.length ? el("ul", {}, differences) : null];
}

/** The noise floor. */
const floorOf = (control) => (control === null || control.tpot === null ? [] : [" Noise floor (the baseline against itself): ",
  ratio(control.tpot.ratio), ` [${interval(control.tpot.low, control.tpot.high)}], ${Math.round(control.agreement * 100)} % equal tokens.`,
  " A speed-up that overlaps this interval has no verdict."]);

function difference(index, { model, first_divergence: { position, baseline, model: other } }) {
  const token = (found) => (found ? el("code", { dir: "auto" }, JSON.stringify(found.token)) : "the end");
  return el("li", {}, `Prompt ${index + 1}, `, shortened(model), `: token ${position + 1} is `, token(other), ", the baseline's is ", token(baseline));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The texts of a comparison, each with the speed of its variant. */
function showTexts({ models, baseline, prompts: compared, results }, asked) {
  const rows = compared.map(({ index, prompt_tokens: promptTokens, outputs: found }) => {
    const outputs = outputsOf(models, index);
    found.forEach(({ text: content, finish_reason: reason, completion_tokens: tokens, timings }, at) => {
      const [ttftS, tpotS] = ["ttft_s", "tpot_s"].map((field) => (timings.every((each) => each[field] !== null) ? mean(timings.map((each) => each[field])) : null));
      outputs[at].content = content;
      outputs[at].finish({ reason, promptTokens, tokens, ttftS, tpotS });
      outputs[at].compared(at === models.indexOf(baseline) ? null : results.find(({ model }) => model === models[at]));
    });
    outputs.forEach((output) => output.show(outputs[models.indexOf(baseline)]));
    return { prompt: asked[index], outputs };
  });
  fill(byId("outputs"));
  fill(byId("outputs"), sections(rows, "Words that are not in the baseline's text are marked. Times are means over the repeats, with the variants in turn."));
}

async function compare() {
  history.replaceState(null, "", byId("link").href);
  fill(byId("result"), el("p", { class: "note", role: "status" }, `Each of ${count(sides().length, "variant")} generates ${REPEATS} times, in turns.`));
  try {
    const asked = prompts();
    const found = await compared({ models: sides(), prompt: asked, repeats: REPEATS, ...sampling() },
      (done, total) => fill(byId("result"), el("p", { class: "note", role: "status" }, `${done} of ${count(total, "turn")} done.`, " ",
        el("progress", { value: done, max: total, "aria-label": "Turns of the comparison" }))),
      AbortSignal.timeout(TIMEOUT_MS));
    showTexts(found, asked);
    fill(byId("result"), resultOf(found));
  } catch (error) {
    fill(byId("result"));
    throw error;
  }
}

/** Two different variants to begin with: the first dense model, and its deepest variant. */
function defaults(models) {
  const dense = models.find((model) => model.variant === "dense" && models.some((other) => other.parent === model.id)) ?? models[0];
  const pruned = models.filter((model) => model.parent === dense.id);
  const short = pruned.filter((model) => model.id.startsWith(`${dense.id}@-`)).sort((one, other) => one.num_blocks - other.num_blocks);
  return [dense.id, (short[0] ?? pruned.at(-1) ?? dense).id];
}

/** A variant that is not chosen yet, of the model of the first. */
function another(models) {
  const chosen = new Set(sides());
  const base = models.find((model) => model.id === sides()[0]);
  const family = models.filter((model) => (model.parent ?? model.id) === (base?.parent ?? base?.id));
  return [...family, ...models].find((model) => !chosen.has(model.id))?.id ?? names[0];
}

function restore(query, models) {
  const asked = query.getAll("model").slice(0, MAX_SIDES);
  names.push(...asked.filter((each) => !names.includes(each))); // of a depth that the list leaves out
  const chosen = asked.length >= MIN_SIDES ? asked : [...new Set([...asked, ...defaults(models)])].slice(0, MIN_SIDES);
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
    byId("more").addEventListener("click", () => { addSide(another(models)); changed(); byId("models").lastChild.lastChild.focus(); });
    byId("another").addEventListener("click", () => { addPrompt(""); changed(); byId("prompts").lastChild.lastChild.focus(); });
  }
});
