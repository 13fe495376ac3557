// The overview: health, models and variants; load and unload.

import { json, post } from "./api.js";
import { bracketed, byId, el, fill, name, say, table } from "./dom.js";
import { noModel } from "./empty.js";
import { bytes, count, interval, number, perplexity, ratio, seconds } from "./format.js";
import { act, poll } from "./live.js";

const PAGE = 25;
const shown = new Map(); // how many variants of a model are shown

function card(title, value, tone, ...more) {
  return el("div", { class: "card" }, el("dt", {}, title),
    el("dd", { class: `value ${tone}` }, value),
    more.map((line) => el("dd", { class: "sub" }, line)));
}

function jobCards(jobs) {
  if (jobs === null) {
    const what = "Jobs cannot be read or submitted. Generation continues.";
    return [card("Job store", "does not answer", "bad", what)];
  }
  const { queued, running, cancelling, paused } = jobs.num_jobs;
  const age = queued > 0 ? `the first waits for ${seconds(jobs.queue_age_s)}` : "nothing waits";
  const workers = jobs.num_workers > 0 ? [count(jobs.num_workers, "worker"), "good"]
    : ["no worker", queued > 0 ? "bad" : "warn"];
  const start = jobs.num_workers > 0 ? "runs one job at a time" : "Start one: sleb worker";
  return [card("Workers", ...workers, start),
    card("Jobs", `${queued} queued`, "", age, `${running + cancelling} running, ${paused} paused`)];
}

function cards(status) {
  const { engine, memory, jobs } = status;
  const isReady = status.status === "ready";
  const limit = memory.max_weight_bytes === null ? "" : ` of at most ${bytes(memory.max_weight_bytes)}`;
  return [
    card("Service", status.status, isReady ? "good" : "warn", status.detail ?? "accepts requests"),
    ...jobCards(jobs),
    card("Requests", `${engine.num_running} running`, "", `${engine.num_waiting} waiting`,
      `${Math.round(engine.kv_cache_usage * 100)} % of the KV cache in use`),
    card(`Memory, ${memory.device}`, `${bytes(memory.free_bytes)} free`, "",
      `weights: ${bytes(memory.weight_bytes)}${limit}`),
  ];
}

function quality(model, domain) {
  const found = model.domains.find((each) => each.domain === domain);
  if (found === undefined) {
    return null;
  }
  const isDense = model.variant === "dense";
  const range = interval(found.ratio_low, found.ratio_high);
  return [perplexity(found.perplexity), isDense ? null
    : bracketed(ratio(found.ratio), range)];
}

function button(model) {
  if (model.backend !== "engine" || model.error !== null) return null;
  const verb = model.is_loaded ? "unload" : "load";
  return el("button", {
    "data-key": model.id,
    "data-needs": "admin",
    "aria-label": `${verb} ${model.id}`,
    onclick: (event) => act(event.target, async () => {
      say(`${verb} ${model.id}`);
      await post(`/models/${encodeURIComponent(model.id)}/${verb}`, undefined, { timeoutMs: 600000 });
      await refresh();
      say(`${model.id}: ${verb}ed`);
    }),
  }, verb === "load" ? "Load" : "Unload");
}

function memoryOf(model) {
  if (model.error !== null) return el("span", { class: "bad" }, model.error);
  if (model.backend !== "engine") return "on another server";
  if (!model.is_loaded) return "not loaded";
  const own = model.weight_bytes > 0 ? bytes(model.weight_bytes) : "shares its parent's";
  return [own, model.kv_cache_bytes > 0
    ? el("span", { class: "sub" }, `KV cache ${bytes(model.kv_cache_bytes)}`) : null];
}

function nameOf(model) {
  const notes = [model.is_published ? null : "not published yet",
    model.repair && (model.repair.is_healed ? "healed" : `repaired: ${model.repair.method}`), ...model.warnings];
  return [name(model.id), ...notes.filter(Boolean).map((note) => el("span", { class: "sub" }, note))];
}

function family(base, models) {
  const domains = [...new Set(models.flatMap((model) => model.domains.map((each) => each.domain)))];
  const rows = models.slice(0, shown.get(base) ?? PAGE).map((model) => [
    nameOf(model),
    model.num_blocks === 0 ? "–" : String(model.num_blocks),
    ...(domains.length ? domains.map((domain) => quality(model, domain))
      : [model.perplexity === null ? null : perplexity(model.perplexity)]),
    memoryOf(model),
    button(model),
  ]);
  const columns = [{ title: "model" }, { title: "blocks", num: true },
    ...(domains.length ? domains.map((domain) => ({ title: `perplexity, ${domain}`, num: true }))
      : [{ title: "perplexity", num: true }]),
    { title: "memory" }, { title: "" }];
  columns.at(-1).title = el("span", { class: "unseen" }, "actions");
  const rest = models.length - rows.length;
  return [el("h3", {}, name(base), ` `, el("span", { class: "muted" },
    `${count(models[0].num_blocks ?? "–", "block")}, ${models[0].dtype ?? "type unknown"}`)),
  table(`Variants of ${base}`, columns, rows),
  rest > 0 ? el("p", {}, el("button", { "data-key": `more ${base}`, onclick: () => {
    shown.set(base, rows.length + PAGE);
    refresh();
  } }, `Show ${Math.min(rest, PAGE)} of ${rest} more`)) : null];
}

function families(models) {
  if (models.length === 0) {
    return [noModel()];
  }
  const groups = Map.groupBy(models, (model) => model.parent ?? model.id);
  return [...groups].flatMap(([base, found]) => family(base, found));
}

const refresh = poll(async () => {
  const [status, models] = await Promise.all([json("/status"), json("/models")]);
  fill(byId("cards"), cards(status));
  fill(byId("list"), families(models.data));
}, 5);
