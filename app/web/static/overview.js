// The overview: health, models and variants; load and unload.

import { Answer, quantized } from "./answer.js";
import { json, post } from "./api.js";
import { cacheLines } from "./cache.js";
import { bracketed, byId, el, fill, name, say, shortened, table } from "./dom.js";
import { noModel } from "./empty.js";
import { bytes, count, interval, number, perplexity, ratio, seconds, shortName } from "./format.js";
import { act, poll } from "./live.js";
import { measureFrontier, measuringLine } from "./measuring.js";

const PAGE = 25;
const MAX_ADVISED = 8; // models, as each is asked for
const MAX_QUANTIZED = 8; // variants of a model, as each is asked for
const shown = new Map(); // how many variants of a model are shown

function card(title, value, tone, ...more) {
  return el("div", { class: "card" }, el("dt", {}, title),
    el("dd", { class: `value ${tone}` }, value),
    more.filter(Boolean).map((line) => el("dd", { class: "sub" }, line)));
}

function jobCards(jobs) {
  if (jobs === null) {
    const what = "Jobs cannot be read or submitted. Generation continues.";
    return [card("Job store", "unavailable", "bad", what)];
  }
  const { queued, running, cancelling, paused } = jobs.num_jobs;
  const age = queued > 0 ? `the first has waited for ${seconds(jobs.queue_age_s)}` : "queue empty";
  const workers = jobs.num_workers > 0 ? [count(jobs.num_workers, "worker"), "good"]
    : ["no worker", queued > 0 ? "bad" : "warn"];
  const start = jobs.num_workers > 0 ? "one job at a time each" : "Start one: sleb worker";
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
    card("Requests", `${engine.num_running} running`, "", `${engine.num_waiting} waiting`),
    card("KV cache", ...cacheLines(engine)),
    card(`Memory, ${memory.device}`, `${bytes(memory.free_bytes)} free`, "",
      `weights: ${bytes(memory.weight_bytes)}${limit}`),
  ];
}

function quality(model, domain, depth) {
  const found = model.domains.find((each) => each.domain === domain);
  if (found === undefined) {
    const known = depth?.ratios[domain];
    return known ? [ratio(known.value), bracketed(interval(known.low, known.high))] : null;
  }
  const isDense = model.variant === "dense";
  const range = interval(found.ratio_low, found.ratio_high);
  return [perplexity(found.perplexity), isDense ? null
    : bracketed(ratio(found.ratio), range)];
}

function button(model) {
  if (model.backend === "openai" || model.error !== null) return null;
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
  if (model.backend === "vllm") return stateOf(model.server);
  if (model.backend !== "engine") return "on an external server";
  if (!model.is_loaded) return "not loaded";
  const own = model.weight_bytes > 0 ? bytes(model.weight_bytes) : "shared with the dense model";
  return [own, model.kv_cache_bytes > 0
    ? el("span", { class: "sub" }, `KV cache ${bytes(model.kv_cache_bytes)}`) : null];
}

/** What the vLLM of a model does, and why. */
function stateOf(server) {
  if (server === null) return "vLLM: not started";
  const isGivenUp = server.state === "failed";
  return [el("span", { class: isGivenUp ? "bad" : "" }, `vLLM: ${isGivenUp ? "failed" : server.state}`),
    server.num_restarts > 0 ? el("span", { class: "sub" }, `restarts: ${server.num_restarts}`) : null,
    server.detail === null ? null : el("span", { class: "sub" }, server.detail)];
}

function nameOf(model, base) {
  const notes = [model.is_published ? null : "not published yet",
    model.repair && (model.repair.is_healed ? "healed" : `repaired: ${model.repair.method}`), ...model.warnings];
  return [el("span", { title: model.id }, name(shortOf(model, base))), ...notes.filter(Boolean).map((note) => el("span", { class: "sub" }, note))];
}

/** The name without that of the model, which the heading has. */
function shortOf(model, base) {
  const isOfBase = model.id.startsWith(`${base}@`) || model.id.startsWith(`${base}+`);
  return shortName(isOfBase ? model.id.slice(base.length) : model.id);
}

/** The speed-up under the load of the answer, or else what is known of the model. */
function speedCell(model, depth) {
  const { ratio: value, ...ends } = model.measured_speedup ?? { ratio: model.predicted_speedup };
  const { speedup, is_measured: isMeasured } = depth ?? { speedup: value === null ? null : { value, ...ends }, is_measured: model.measured_speedup !== null };
  if (!speedup) return null;
  const range = interval(speedup.low, speedup.high);
  return [ratio(speedup.value), range ? bracketed(range) : null, isMeasured ? null : el("span", { class: "sub" }, "predicted")];
}

/** The dense model first, then by depth. The checkpoint of the newest order is its deepest one. */
function listed(base, models) {
  const newest = models.find((model) => model.id.startsWith(`${base}@-`))?.checkpoint;
  const isTwice = (model) => model.id === newest && models.some((other) => other !== model && other.num_blocks === model.num_blocks && other.checkpoint === newest);
  const order = (model) => (model.id === base ? 0 : model.variant === "dense" ? 1 : 2);
  return models.filter((model) => !isTwice(model)).sort((one, other) => order(one) - order(other));
}

function columnsOf(domains, advice) {
  const load = advice?.loads[0].words ?? "";
  return [{ title: "model" }, { title: "blocks", num: true }, { title: `speed-up ${load}`, num: true },
    ...(domains.length ? domains.map((domain) => ({ title: `perplexity, ${domain}`, num: true }))
      : [{ title: "perplexity", num: true }]),
    { title: "memory" }, { title: el("span", { class: "unseen" }, "actions") }];
}

function variants(base, models, advice) {
  const domains = [...new Set(models.flatMap((model) => model.domains.map((each) => each.domain)))];
  const all = listed(base, models);
  const depths = new Map(advice?.depths.map((depth) => [depth.name, depth]));
  const rows = all.slice(0, shown.get(base) ?? PAGE).map((model) => [
    nameOf(model, base),
    model.num_blocks === 0 ? "–" : String(model.num_blocks),
    speedCell(model, depths.get(model.id)),
    ...(domains.length ? domains.map((domain) => quality(model, domain, depths.get(model.id)))
      : [model.perplexity === null ? null : perplexity(model.perplexity)]),
    memoryOf(model),
    button(model),
  ]);
  const rest = all.length - rows.length;
  return [table(`Variants of ${base}`, columnsOf(domains, advice), rows),
    rest > 0 ? el("p", {}, el("button", { "data-key": `more ${base}`, onclick: () => {
      shown.set(base, rows.length + PAGE);
      refresh();
    } }, `Show ${Math.min(rest, PAGE)} of ${rest} more`)) : null];
}

const isPruned = (models) => models.some((model) => model.variant === "pruned");

/** A model with its variants, drawn again part by part. `isOnly` where there is no other model, so
 * that the first words have its button already. */
class Family {
  constructor(base) {
    this.base = base;
    this.models = [];
    this.heading = el("h2");
    this.start = el("div");
    this.answer = new Answer(base, () => this.draw(), (body) => measureFrontier(body, showRunning));
    this.heads = el("summary");
    this.table = el("div");
    this.all = el("details", { class: "all" }, this.heads, this.table);
    this.node = el("article", { class: "family" }, this.heading, this.start, this.answer.node, this.all);
  }

  async update(models, isAdvised, isOnly) {
    if (isAdvised) await this.answer.ask();
    const { advice } = this.answer;
    if (this.models.length === 0) this.all.open = advice === null || matchMedia("(min-width: 46rem)").matches; // later a person opens and closes it
    const others = advice ? await Promise.all(quantized(advice).slice(0, MAX_QUANTIZED).map(({ name: each }) => modelOf(each))) : [];
    this.models = [...models, ...others.filter(Boolean)];
    const query = new URLSearchParams({ model: this.base });
    fill(this.start, isAdvised || isOnly ? null
      : el("p", { class: "row" }, el("a", { class: "button", "data-needs": "jobs", href: `/ui/jobs/new?${query}` }, "Prune this model")));
    this.answer.node.hidden = !isAdvised;
    this.draw();
  }

  draw() {
    const [first] = this.models;
    fill(this.heading, name(this.base), " ", el("span", { class: "muted" },
      `${count(first.num_blocks ?? "–", "block")}, ${first.dtype ?? "type unknown"}`));
    this.answer.show(this.models);
    fill(this.heads, count(listed(this.base, this.models).length, "variant"));
    fill(this.table, variants(this.base, this.models, this.answer.advice));
  }
}

/** A model that no list has, or null where it cannot be had. */
const modelOf = (id) => json(`/models/${encodeURIComponent(id)}`).catch(() => null);

/** What this is and what to do first, where nothing is pruned. */
function first(groups) {
  const models = [...groups.values()].flat();
  if (isPruned(models)) return null;
  const base = models.find((model) => model.backend === "engine" && model.error === null);
  return base && el("div", { class: "empty first" },
    el("p", {}, "sleb-serve makes models faster by removing their least important blocks, and measures the cost. No model is pruned yet."),
    el("p", {}, el("a", { class: "button primary", "data-needs": "jobs", href: `/ui/jobs/new?${new URLSearchParams({ model: base.id })}` }, "Prune your first model")));
}

const families = new Map(); // by the name of the dense model

/** What to take of each model that has variants, and all variants. */
async function drawn(groups) {
  if (groups.size === 0) return [noModel()];
  const advised = [...groups].filter(([, found]) => isPruned(found)).slice(0, MAX_ADVISED).map(([base]) => base);
  await Promise.all([...groups].map(([base, found]) => {
    if (!families.has(base)) families.set(base, new Family(base));
    return families.get(base).update(found, advised.includes(base), groups.size === 1);
  }));
  return [first(groups), ...[...groups.keys()].map((base) => families.get(base).node)];
}

function running({ data }) {
  return data.map((job) => {
    const counts = job.phase === "heal" ? job.heal_progress : job.phase === "repair" ? job.repair_progress : job.phase === "search" ? job.progress : null;
    const words = `${job.source === null ? "Pruning" : "Healing"} ${job.source ?? job.model}`;
    return el("p", { class: "running" }, el("a", { href: `/ui/jobs/${encodeURIComponent(job.id)}`, title: job.id, "data-key": job.id }, words),
      el("span", { class: "muted" }, `${job.phase ?? "starts"}${counts ? `, ${Math.round(counts.ratio * 100)} %` : ""}`),
      el("progress", { value: counts?.ratio, max: 1, "aria-label": `Progress of the job on ${job.model}` }));
  });
}

let jobs = null; // lines about those that run

const showRunning = () => fill(byId("running"), jobs, measuringLine());

let maySeeJobs = true;
/** The jobs that run; none for a key that may not see them, which asks once. */
async function runningJobs() {
  const found = await json("/prune-jobs?status=running&limit=5").catch((error) => {
    if (error.status !== 403) throw error;
    maySeeJobs = false;
    return null;
  });
  return found && running(found);
}

const refresh = poll(async () => {
  const [status, models] = await Promise.all([json("/status"), json("/models")]);
  fill(byId("cards"), cards(status));
  const groups = Map.groupBy(models.data, (model) => model.parent ?? model.id);
  fill(byId("list"), await drawn(groups));
  byId("legend").hidden = !isPruned(models.data);
  const isRunning = status.jobs !== null && status.jobs.num_jobs.running > 0;
  jobs = isRunning && maySeeJobs ? await runningJobs() : null;
  showRunning();
}, 5);
