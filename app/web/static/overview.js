// The overview: health, models and variants; load and unload.

import { adviceOn, nextOf, sentenceOf, sidesOf } from "./advice.js";
import { json, post } from "./api.js";
import { cacheLines } from "./cache.js";
import { bracketed, byId, el, fill, name, say, shortened, table } from "./dom.js";
import { noModel } from "./empty.js";
import { bytes, count, interval, number, perplexity, ratio, seconds, shortName } from "./format.js";
import { gain } from "./gain.js";
import { act, poll } from "./live.js";

const PAGE = 25;
const MAX_ADVISED = 8; // models, as each is asked for
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

const speedOf = (model) => model.measured_speedup?.ratio ?? model.predicted_speedup;

/** The name without that of the model, which the heading has. */
const shortOf = (model, base) => shortName(model.id.startsWith(`${base}@`) ? model.id.slice(base.length) : model.id);

/** How the picture marks what is advised, and else what is nearest to the limits. */
const markOf = ({ id }, advice) => (id === advice?.taken ? "taken" : id === advice?.nearest ? "taken nearest" : null);

/** The point of a model in the picture, by its worst domain; `kind` is a field before `ratio`. */
function pointOf(model, base, advice, kind = "") {
  const worst = model.domains.reduce((one, other) => (other[`${kind}ratio`] > one[`${kind}ratio`] ? other : one));
  const [cost, low, high] = ["ratio", "ratio_low", "ratio_high"].map((field) => worst[`${kind}${field}`]);
  return { depth: model.removed_blocks.length, speed: speedOf(model), cost, low, high, short: shortOf(model, base), mark: kind === "" ? markOf(model, advice) : null,
    title: `${shortOf(model, base)}: ${ratio(speedOf(model))} as fast, ${ratio(cost)} the perplexity on ${worst.domain}` };
}

/** Of int8 weights only the advice has the perplexity. */
function int8Points(advice) {
  const known = (advice?.depths ?? []).filter((depth) => depth.is_int8 && depth.speedup && Object.keys(depth.ratios).length > 0);
  return known.sort((one, other) => one.num_removed - other.num_removed).map((depth) => {
    const [domain, worst] = Object.entries(depth.ratios).reduce((one, other) => (other[1].value > one[1].value ? other : one));
    const [short, speed, cost] = [shortName(depth.short_name), depth.speedup.value, worst.value];
    return { depth: depth.num_removed, speed, cost, low: worst.low, high: worst.high, mark: markOf({ id: depth.name }, advice),
      short: depth.num_removed ? short : "", title: `${short}: ${ratio(speed)} as fast, ${ratio(cost)} the perplexity on ${domain}` };
  });
}

function picture(base, models, advice) {
  const known = models.filter((model) => model.variant === "pruned" && speedOf(model) && model.domains.length > 0);
  const byDepth = (one, other) => other.num_blocks - one.num_blocks;
  const healed = Map.groupBy(known.filter((model) => model.repair?.is_healed), ({ checkpoint }) => checkpoint);
  const depths = known.filter((model) => model.id.startsWith(`${base}@-`) && !model.repair?.is_healed).sort(byDepth);
  const isRepaired = depths.some((model) => model.repair !== null);
  const line = (kind, words, found, field) => ({ kind, words, points: found.map((model) => pointOf(model, base, advice, field)) });
  return gain(`Speed and perplexity of the variants of ${base}`, [
    line("served", isRepaired ? "repaired" : "pruned", depths),
    ...(isRepaired ? [line("raw", "unrepaired", depths, "raw_")] : []),
    { kind: "int8", words: "int8", points: int8Points(advice) },
    ...[...healed.values()].map((found, index) => line("healed", index ? "" : "healed", found.sort(byDepth)))], advice?.limits);
}

function speedCell(model) {
  const measured = model.measured_speedup;
  if (measured) return [ratio(measured.ratio), measured.low === null ? null : bracketed(interval(measured.low, measured.high))];
  return model.predicted_speedup === null ? null : [ratio(model.predicted_speedup), el("span", { class: "sub" }, "predicted")];
}

/** The dense model first, then by depth. The checkpoint of the newest order is its deepest one. */
function listed(base, models) {
  const newest = models.find((model) => model.id.startsWith(`${base}@-`))?.checkpoint;
  const isTwice = (model) => model.id === newest && models.some((other) => other !== model && other.num_blocks === model.num_blocks && other.checkpoint === newest);
  return models.filter((model) => !isTwice(model)).sort((one, other) => (one.variant === "dense" ? -1 : 0) - (other.variant === "dense" ? -1 : 0));
}

function columnsOf(domains) {
  return [{ title: "model" }, { title: "blocks", num: true }, { title: "speed-up", num: true },
    ...(domains.length ? domains.map((domain) => ({ title: `perplexity, ${domain}`, num: true }))
      : [{ title: "perplexity", num: true }]),
    { title: "memory" }, { title: el("span", { class: "unseen" }, "actions") }];
}

function variants(base, models) {
  const domains = [...new Set(models.flatMap((model) => model.domains.map((each) => each.domain)))];
  const all = listed(base, models);
  const rows = all.slice(0, shown.get(base) ?? PAGE).map((model) => [
    nameOf(model, base),
    model.num_blocks === 0 ? "–" : String(model.num_blocks),
    speedCell(model),
    ...(domains.length ? domains.map((domain) => quality(model, domain))
      : [model.perplexity === null ? null : perplexity(model.perplexity)]),
    memoryOf(model),
    button(model),
  ]);
  const rest = all.length - rows.length;
  return [table(`Variants of ${base}`, columnsOf(domains), rows),
    rest > 0 ? el("p", {}, el("button", { "data-key": `more ${base}`, onclick: () => {
      shown.set(base, rows.length + PAGE);
      refresh();
    } }, `Show ${Math.min(rest, PAGE)} of ${rest} more`)) : null];
}

const stat = (value, words) => el("div", {}, el("dt", {}, words), el("dd", {}, value));

/** A ratio with how sure it is. */
const known = ({ value, low, high }, words) => stat(ratio(value), [words, low === null ? null : [", ", el("span", { class: "whole" }, interval(low, high))]]);

/** The figures of what the advice takes, or else of the nearest, to be read from afar. */
function stats(advice) {
  const about = advice?.depths.find(({ name: each }) => each === (advice.taken ?? advice.nearest));
  if (!about) return null;
  const costs = Object.entries(about.ratios).sort(([, one], [, other]) => other.value - one.value);
  return [advice.taken ? null : el("p", { class: "note" }, "The closest, ", shortened(about.short_name), ":"), el("dl", { class: "stats" },
    about.speedup && known(about.speedup, `speed-up, ${about.is_measured ? "measured" : "predicted"}`),
    costs.length ? known(costs[0][1], `perplexity on ${costs[0][0]}, the worst text`) : null,
    about.parameters === null || about.num_removed === 0 ? null : stat(`${Math.round((1 - about.parameters) * 100)} %`, "fewer parameters"))];
}

function answer(base, models, advice, query) {
  const shown = advice?.taken ?? advice?.nearest;
  return el("div", { class: "answer" },
    el("div", {}, advice ? [sentenceOf(advice), stats(advice), nextOf(advice)] : null, el("p", { class: "row" },
      shown ? sidesOf(base, shown, advice.taken ? "primary" : "") : null,
      el("a", { class: "button", "data-needs": "jobs", href: `/ui/curve?${query}` }, "All depths"),
      el("a", { class: "button", "data-needs": "jobs", href: `/ui/jobs/new?${query}` }, "New job"))),
    picture(base, models, advice));
}

const isPruned = (models) => models.some((model) => model.variant === "pruned");

/** `isOnly` where there is no other model, so that the first words have its button already. */
function family(base, models, advice, isOnly) {
  const query = new URLSearchParams({ model: base });
  return el("article", { class: "family" }, el("h2", {}, name(base), ` `, el("span", { class: "muted" },
    `${count(models[0].num_blocks ?? "–", "block")}, ${models[0].dtype ?? "type unknown"}`)),
  isPruned(models) ? answer(base, models, advice, query) : null,
  isPruned(models) || isOnly ? null
    : el("p", { class: "row" }, el("a", { class: "button", "data-needs": "jobs", href: `/ui/jobs/new?${query}` }, "Prune this model")),
  variants(base, models));
}

/** What this is and what to do first, where nothing is pruned. */
function first(groups) {
  const models = [...groups.values()].flat();
  if (isPruned(models)) return null;
  const base = models.find((model) => model.backend === "engine" && model.error === null);
  return base && el("div", { class: "empty first" },
    el("p", {}, "sleb-serve makes models faster by removing their least important blocks, and measures the cost. No model is pruned yet."),
    el("p", {}, el("a", { class: "button primary", "data-needs": "jobs", href: `/ui/jobs/new?${new URLSearchParams({ model: base.id })}` }, "Prune your first model")));
}

function families(groups, advice) {
  return groups.size === 0 ? [noModel()] : [first(groups), ...[...groups].map(([base, found]) => family(base, found, advice.get(base), groups.size === 1))];
}

/** What to take of each model that has variants. */
async function advices(groups) {
  const pruned = [...groups].filter(([, found]) => isPruned(found)).slice(0, MAX_ADVISED);
  return new Map(await Promise.all(pruned.map(async ([base]) => [base, await adviceOn(base)])));
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
  fill(byId("list"), families(groups, await advices(groups)));
  byId("legend").hidden = !isPruned(models.data);
  const isRunning = status.jobs !== null && status.jobs.num_jobs.running > 0;
  fill(byId("running"), isRunning && maySeeJobs ? await runningJobs() : null);
}, 5);
