// One job: its state, its removal order as it grows, its events, and what can be done with it.

import { adviceOn, adviceTable, nextOf, sentenceOf, sidesOf } from "./advice.js";
import { json, post, Problem } from "./api.js";
import { blocks } from "./blocks.js";
import { bracketed, byId, confirmed, el, facts, fill, name, say, table, text } from "./dom.js";
import { follow } from "./follow.js";
import { fixed, interval, moment, number, perplexity, ratio, seconds } from "./format.js";
import { act, begin, Freshness } from "./live.js";
import { pointsOf } from "./orders.js";
import { phases } from "./phases.js";
import { Plot } from "./plot.js";
import { FINAL, statusOf, targetOf } from "./status_words.js";
import { trajectory } from "./trajectory.js";

const MIN_REFRESH_MS = 1000;
const MAX_EVENTS = 200;

const id = byId("title").dataset.id;
const path = `/prune-jobs/${encodeURIComponent(id)}`;
const decided = new Map(); // what the events say of each round, by its step
const plots = { losses: null, margins: null, healing: null };
const checks = { healed: new Map(), control: new Map() }; // what the events say of the healing, by tokens
let job = null;
let checkpoints = []; // the pruned one, then the healed one
let prefixes = []; // of the first

function errorOf({ code, message, param }) {
  return el("div", { class: "banner bad" },
    el("strong", {}, `Failed: ${code}`), param ? ` (${param})` : "", el("br"), text(message));
}

function ended() {
  if (job.pruned_model === null) return null;
  const query = new URLSearchParams({ model: job.model });
  return el("p", { class: "row" }, el("a", { class: "button", href: `/ui/curve?${query}` }, "Show the curve"),
    sidesOf(job.model, job.pruned_model));
}

/** The settings of a healing that matter most. */
function trainingOf({ num_tokens: tokens, max_minutes: minutes, rank, depths, control }) {
  return [`at most ${tokens.toLocaleString("en")} tokens`, minutes && `at most ${minutes} min`, `adapters of rank ${rank}`,
    depths === "all" ? "for every depth" : "for the deepest model", control ? "with a control" : "without a control"].filter(Boolean).join(", ");
}

function showState() {
  fill(byId("state"),
    job.error ? errorOf(job.error) : null,
    facts([
      ["Status", statusOf(job)],
      ["Job", name(job.id)],
      ["Model", name(job.model)],
      ["Heals", job.source && name(job.source)],
      ["Reuses the search of", job.search_of && el("a", { href: `/ui/jobs/${encodeURIComponent(job.search_of)}` }, text(job.search_of))],
      ["Target", targetOf(job)],
      ["Healing", job.spec.heal && trainingOf(job.spec.heal)],
      ["Worker", job.worker && `${job.worker}, attempt ${job.attempt}`],
      ["Priority", job.priority === 0 ? null : String(job.priority)],
      ["Created", moment(job.created_at)],
      ["Started", job.started_at && moment(job.started_at)],
      ["Ended", job.finished_at && `${moment(job.finished_at)}${job.started_at ? `, after ${seconds(job.finished_at - job.started_at)}` : ""}`],
      ["Published as", job.pruned_model && name(job.pruned_model)],
    ]));
  fill(byId("title"), job.source === null ? "Pruning of " : "Healing of ", name(job.source ?? job.model), " ",
    el("span", { class: "short-id muted", title: job.id }, `…${job.id.slice(-6)}`));
  fill(byId("bars"), phases(job));
  byId("settings").textContent = JSON.stringify(job.spec, (_, value) => value ?? undefined, 2);
  byId("rest").hidden = false;
  document.title = `${job.status}: job ${id} · sleb-serve`;
}

function change(verb, label, key) {
  return el("button", { "data-key": key, onclick: (event) => act(event.target, async () => {
    job = await post(`${path}/${verb}`);
    say(`${verb} requested`);
    show();
  }) }, label);
}

/** Queue the job again as it was. Its events go on behind those of its end. */
async function retry(event) {
  await act(event.target, async () => {
    job = await post(`${path}/retry`);
    say("retry requested");
    show();
    begin(watch);
  });
}

async function cancel(event) {
  const isSure = await confirmed("Cancel this job?",
    "It stops after its current evaluation. The removals found so far are kept and can be served.", "Cancel the job");
  if (isSure) await act(event.target, async () => {
    job = await post(`${path}/cancel`);
    say("cancel requested");
    show();
  });
}

async function remove(event) {
  const isSure = await confirmed("Delete this job?",
    `Its record, its events${job.pruned_model ? " and its published checkpoint" : ""} will be deleted. Its variants can no longer be served.`, "Delete the job");
  if (isSure) await act(event.target, async () => { await json(path, { method: "DELETE" }); location.assign("/ui/jobs"); });
}

function showActions() {
  const can = (...statuses) => statuses.includes(job.status);
  const isPausing = job.pause_requested_at !== null;
  fill(byId("actions"),
    can("queued", "running") && !isPausing ? change("pause", "Pause", "pause") : null,
    can("paused") || isPausing ? change("resume", isPausing ? "Withdraw the pause" : "Resume", "pause") : null,
    can("failed", "cancelled") ? el("button", { "data-key": "retry", onclick: retry }, "Retry") : null,
    can("queued", "running", "paused") ? el("button", { class: "danger", "data-key": "cancel", onclick: cancel }, "Cancel") : null,
    job.status === "succeeded" && job.source === null && job.spec.heal === null
      ? el("a", { class: "button", href: `/ui/jobs/new?${new URLSearchParams({ heal: job.pruned_model })}` }, "Heal") : null,
    el("a", { class: "button", href: `/ui/jobs/new?${job.source === null ? new URLSearchParams({ like: id })
      : new URLSearchParams({ heal: job.source })}` }, "New job like this"),
    FINAL.has(job.status) ? el("button", { class: "danger apart", "data-key": "delete", onclick: remove }, "Delete") : null);
}

/** The rounds of the record, with what only events and checkpoints tell. */
function rounds() {
  return job.removed_blocks.map((block, index) => {
    const event = decided.get(index + 1);
    return { step: index + 1, block, loss: job.losses[index],
      ...(event?.block === block ? event : {}), prefix: prefixes[index] ?? null };
  });
}

/** Whether the margin of a round lies within its error, so that the runner-up may be as good. */
const isTie = ({ margin, margin_error: error }) => Number.isFinite(margin) && Number.isFinite(error) && margin < 2 * error;

function draw(found) {
  plots.losses ??= new Plot(byId("losses"), "Loss by number of removed blocks; the table below has its values");
  plots.margins ??= new Plot(byId("margins"), "Margin to the runner-up in each round; the table below has its values");
  const format = (value) => number(value, 4);
  const domains = [...new Set(found.flatMap(({ domain_losses: losses }) => Object.keys(losses ?? {})))];
  plots.losses.draw({ x: [0, ...found.map(({ step }) => step)], xLabel: "removed blocks", xStep: true,
    series: [{ label: domains.length ? "all text" : "loss", values: [job.dense_loss, ...found.map(({ loss }) => loss)], format },
      ...domains.map((domain, index) => ({ label: domain, hue: index + 2, dash: [6, 4], format,
        values: [found[0].dense_domain_losses?.[domain] ?? null, ...found.map(({ domain_losses: losses }) => losses?.[domain] ?? null)] }))] });
  const bounds = found.map(({ margin, margin_error: error }) =>
    (margin === undefined || margin === null || !error ? null : [margin - error, margin + error]));
  const margins = (words, hue, isWanted) => ({ label: words, hue, isJoined: false, format, bounds: bounds.map((bound, at) => (isWanted(found[at]) ? bound : null)),
    values: found.map((round) => (isWanted(round) ? round.margin ?? null : null)) });
  const both = [margins("clear", 1, (round) => !isTie(round)), margins("tie: the runner-up may be as good", 5, isTie)];
  plots.margins.draw({ x: found.map(({ step }) => step), xLabel: "round", xStep: true, zero: true,
    series: both.filter(({ values }) => values.some((value) => value !== null)) });
}

/** The quality of every depth on each text, with the blocks that went: what the checkpoint's picture shows. */
function showQuality() {
  const points = checkpoints.flatMap((checkpoint) => checkpoint.prefixes).flatMap(pointsOf);
  byId("quality").hidden = points.length === 0;
  if (points.length > 0) fill(byId("quality"), trajectory(points, numBlocks));
}

/** The loss of the healing over its tokens, beside that of the control. */
function drawHealing() {
  const numChecks = checks.healed.size + checks.control.size;
  const result = healedTable();
  byId("healing").hidden = numChecks === 0 && result === null;
  fill(byId("healed"), result);
  byId("healing-figure").hidden = numChecks === 0;
  if (numChecks === 0) return;
  plots.healing ??= new Plot(byId("healing-plot"), "Loss of the healing over the tokens; the events below have its values");
  const x = [...new Set([...checks.healed.keys(), ...checks.control.keys()])].sort((one, other) => one - other);
  const line = (found, field) => x.map((tokens) => found.get(tokens)?.[field] ?? null);
  const format = (value) => number(value, 4);
  const series = [
    { label: "healed, held-out text", hue: 0, format, values: line(checks.healed, "held_out_loss") },
    { label: "healed, in training", hue: 0, dash: [2, 3], format, values: line(checks.healed, "loss") },
    { label: "control, held-out text", hue: 1, dash: [6, 4], format, values: line(checks.control, "held_out_loss") },
  ];
  plots.healing.draw({ x, xLabel: "tokens", xZero: true, series: series.filter(({ values }) => values.some((value) => value !== null)) });
}

function quality(prefix, domain) {
  const found = prefix?.domains.find((each) => each.domain === domain);
  if (!found) return null;
  const range = interval(found.ratio_low, found.ratio_high);
  return [perplexity(found.perplexity), bracketed(ratio(found.ratio), range)];
}

function roundTable(found) {
  const domains = [...new Set(prefixes.flatMap((prefix) => prefix.domains.map(({ domain }) => domain)))];
  const repaired = prefixes.some((prefix) => prefix.repair);
  const columns = ["round", "block", "loss", "margin ± error", "runner-up", ...(repaired ? ["repair"] : []),
    ...domains.map((domain) => `perplexity, ${domain}`)].map((title) => ({ title, num: !["repair", "round"].includes(title) }));
  const rows = found.map(({ step, block, loss, margin, margin_error: error, runner_up: other, prefix }) => [
    String(step), String(block), fixed(loss),
    margin === undefined || margin === null ? null : [`${fixed(margin)}${error ? ` ± ${fixed(error)}` : ""}`, isTie({ margin, margin_error: error }) ? el("span", { class: "sub" }, "tie") : null],
    other === undefined || other === null ? null : String(other),
    ...(repaired ? [prefix?.repair?.method ?? "none"] : []),
    ...domains.map((domain) => quality(prefix, domain)),
  ]);
  return table("Rounds of the removal order", columns, rows);
}

/** The perplexity of another model than the served one on a text: raw, repaired or control. */
function measuredAs(found, kind) {
  if (found[`${kind}_perplexity`] === null) return null;
  const range = interval(found[`${kind}_ratio_low`], found[`${kind}_ratio_high`]);
  return [perplexity(found[`${kind}_perplexity`]), bracketed(ratio(found[`${kind}_ratio`]), range)];
}

/** The healed checkpoint beside what it was before, by domain. */
function healedTable() {
  const healed = checkpoints.flatMap((checkpoint) => checkpoint.prefixes).findLast((prefix) => prefix.repair?.is_healed);
  if (!healed) return null;
  const kinds = [["pruned, raw", "raw"], ["repaired", "repaired"], ["healed", null], ["control", "control"]]
    .filter(([, kind]) => kind === null || healed.domains.some((found) => found[`${kind}_perplexity`] !== null));
  const columns = ["text", "dense", ...kinds.map(([title]) => title)].map((title, index) => ({ title, num: index > 0 }));
  const rows = healed.domains.map((found) => [found.domain, perplexity(found.dense_perplexity),
    ...kinds.map(([, kind]) => (kind === null ? quality(healed, found.domain) : measuredAs(found, kind)))]);
  return [el("h3", {}, "Perplexity of ", name(healed.model)), table(`Perplexity of ${healed.model}`, columns, rows)];
}

/** What came of the job: what to take. */
async function showAdvice() {
  if (job.status !== "succeeded" || job.pruned_model === null) return fill(byId("advice"));
  const advice = await adviceOn(job.model);
  fill(byId("advice"), advice && [el("h2", {}, "What to take"), sentenceOf(advice), nextOf(advice), ended(), adviceTable(advice)]);
}

let numBlocks = null;
function showTrajectory() {
  const found = rounds();
  byId("trajectory").hidden = found.length === 0;
  if (found.length === 0) return;
  const isMeasured = prefixes.some(({ domains }) => domains.length > 0); // the picture of the quality has the blocks too
  fill(byId("blocks"), numBlocks === null || isMeasured ? null : blocks(numBlocks, new Map(found.map(({ block, step }) => [block, step]))));
  showQuality();
  draw(found);
  fill(byId("rounds"), roundTable(found));
}

function show() {
  showState();
  showActions();
  showTrajectory();
  drawHealing();
}

const mayHavePrefixes = () => job === null || FINAL.has(job.status) || ["heal", "evaluate", "publish"].includes(job.phase);

async function refresh() {
  const [found, list] = await Promise.all([json(path), mayHavePrefixes() ? json(`${path}/checkpoints`) : null]);
  job = found;
  checkpoints = list?.data ?? checkpoints;
  prefixes = checkpoints[0]?.prefixes ?? [];
  show();
  await showAdvice();
}

/** The picture of the blocks needs their number, which a model that is gone cannot tell any more. */
async function readNumBlocks() {
  const model = await json(`/models/${encodeURIComponent(job.model)}`).catch(() => null);
  numBlocks = model?.num_blocks ?? null;
  showTrajectory();
}

let due = null;
let refreshedAt = 0;
/** Read the record again, at most once a second, as events come in bursts. */
function refreshSoon() {
  due ??= setTimeout(async () => {
    due = null;
    refreshedAt = Date.now();
    await refresh().catch((error) => { if (!(error instanceof Problem)) throw error; });
  }, Math.max(100, refreshedAt + MIN_REFRESH_MS - Date.now()));
}

function heard(event) {
  const { data } = event;
  if ("block" in data) decided.set(data.step, data);
  if ("heal" in data) checks[data.heal.training === "control" ? "control" : "healed"].set(data.heal.num_tokens, data.heal);
  const isProgress = event.type === "metrics" && !("block" in data) && !("heal" in data);
  if (!isProgress) {
    const tone = { warn: "warn", error: "bad" }[event.level];
    byId("events").prepend(el("li", {}, el("time", { datetime: new Date(event.created_at * 1000).toISOString() }, moment(event.created_at)),
      el("span", { class: tone }, text(event.message))));
    while (byId("events").children.length > MAX_EVENTS) byId("events").lastChild.remove();
    byId("older").hidden = byId("events").children.length < MAX_EVENTS;
  }
  refreshSoon();
}

/** Show all events, the old ones first, until the job ends. */
async function watch() {
  byId("events").replaceChildren();
  await follow(`${path}/events`, new Freshness(), heard, ({ data }) => FINAL.has(data.status));
  refreshSoon();
  say(`The job has ended: ${job.status}`);
}

await begin(async () => {
  await refresh();
  readNumBlocks();
  await watch();
});
