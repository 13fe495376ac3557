// Submit a job: a form that knows the model's limits, an estimate of it, and the same as `curl`.

import { json, post, Problem } from "./api.js";
import { Depth, kinds, noKind } from "./choices.js";
import { copies } from "./command.js";
import { curl, requiresKey } from "./curl.js";
import { alertOf, byId, el, fill, name, say } from "./dom.js";
import { noModel } from "./empty.js";
import { estimateOf, healingOf } from "./estimates.js";
import { WORDS } from "./field_words.js";
import { count } from "./format.js";
import { act, begin } from "./live.js";
import { MIX, Mix } from "./mix.js";
import { Field } from "./schema_form.js";

const TARGETS = ["num_remove", "sparsity", "max_perplexity_ratio", "target_speedup", "target_bytes"];
const GROUPS = {
  "Calibration text": ["calibration.dataset", "calibration.path", "calibration.sampling", "calibration.num_samples", "calibration.seqlen", "calibration.seed"],
  Search: ["metric", "search", "protect_first", "protect_last"],
  Repair: ["repair"],
  Healing: ["num_tokens", "max_minutes", "rank", "alpha", "learning_rate", "warmup", "batch_tokens", "clip_norm", "steps_per_check",
    "patience", "hidden_weight", "seed", "checkpoint_activations", "control", "depths"].map((field) => `heal.${field}`),
  Evaluation: ["num_samples", "seqlen", "margin", "max_seconds"].map((field) => `evaluation.${field}`),
  "Measure and run": ["evaluate", "quantize", "tasks", "task_questions", "resident", "dtype", "save_dtype", "priority"],
};
const FIRST_OF_HEALING = ["heal.num_tokens", "heal.max_minutes", "heal.control"];
const COMMON = ["sampling", "num_samples", "seqlen", "seed"]; // to all texts of a mix
const MIXED = ["prose", "code"]; // to begin with, as the default is
const ESTIMATE_AFTER_MS = 400;

const fields = new Map();
const models = new Map();
const variants = new Map(); // of each dense model
const query = new URLSearchParams(location.search);
const source = query.get("heal"); // the checkpoint of a job that only heals
const sent = { text: "", key: "" };
let estimating = null;
let due = null;
let isKeyRequired = false;
let mix = null; // the rows of a mix of texts
let depth = null; // the slider
let like = null; // the first text of the job that this one is like

const route = source === null ? "/prune-jobs" : "/heal-jobs";
const chosenTarget = () => byId("target").value;
const modelOf = () => models.get(byId("model").value);
const isMix = () => fields.get("calibration.dataset")?.value === MIX;
const heals = () => source !== null || byId("heal").checked;

/** What is sent: the model, the target, and what differs from its default. */
function body() {
  const found = { model: source ?? byId("model").value };
  if (heals()) found.heal = {};
  for (const [path, field] of fields) {
    const isOther = (TARGETS.includes(path) && path !== chosenTarget()) || (path.startsWith("heal.") && !heals())
      || (path.startsWith("calibration.") && isMix());
    if (field.value === undefined || isOther) continue;
    const [first, second] = path.split(".");
    if (second) (found[first] ??= {})[second] = field.value;
    else found[first] = field.value;
  }
  if (isMix()) found.calibration = mix.body(commonOf);
  return found;
}

/** What all texts of a mix share; a text keeps what it had, where the form still has that of the first. */
function commonOf(source) {
  return Object.fromEntries(COMMON.map((field) => {
    const { value, schema } = fields.get(`calibration.${field}`);
    const chosen = value ?? schema.default;
    const found = source && chosen === like[field] ? source[field] : chosen;
    return [field, found === schema.default ? undefined : found];
  }));
}

/** The same for the same settings, so that a second click, or a retry, creates no second job. */
function idempotencyKey(settings) {
  const text = JSON.stringify(settings);
  if (text !== sent.text) Object.assign(sent, { text, key: random() });
  return sent.key;
}

/** Also without TLS, where `crypto.randomUUID` is missing. */
const random = () => [...crypto.getRandomValues(new Uint8Array(16))]
  .map((byte) => byte.toString(16).padStart(2, "0")).join("");

function showCurl() {
  byId("curl").textContent = curl("POST", route, { body: body(), requiresKey: isKeyRequired });
}

/** The field that an error is about: its own, that of its text in a mix, or that of the whole. */
function fieldOf(path) {
  const ofMix = path.startsWith("calibration.") && isMix() ? mix.field(path) : undefined;
  const whole = path.replace(/^calibration\.\d+\./, "calibration."); // all texts share it
  return ofMix ?? fields.get(path) ?? fields.get(whole) ?? fields.get(path.split(".")[0])
    ?? (path.startsWith("calibration") ? fields.get("calibration.dataset") : undefined);
}

/** Put the errors of a refusal beside their fields; returns whether each has a field. */
function showErrors(problem) {
  const named = problem.errors.length
    ? problem.errors.map(({ pointer, detail }) => [pointer.slice(1).replaceAll("/", "."), detail])
    : [[problem.param ?? "", problem.message]];
  let isShown = true;
  for (const [path, detail] of named) {
    const field = fieldOf(path);
    if (field) field.say(detail);
    else isShown = false;
  }
  return isShown;
}

async function estimate() {
  for (const field of [...fields.values(), ...(mix?.fields() ?? [])]) field.say("");
  estimating?.abort();
  if (source === null && (!modelOf() || fields.get(chosenTarget()).value === undefined)) {
    return fill(byId("estimate"), el("p", { class: "muted" }, `Enter ${WORDS[chosenTarget()].toLowerCase()} to see an estimate.`));
  }
  estimating = new AbortController();
  try {
    const found = await post(route, { ...body(), dry_run: true }, { signal: estimating.signal });
    alertOf(null); // what was refused before is right now
    fill(byId("estimate"), source === null ? estimateOf(found) : healingOf(found));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    showErrors(error);
    fill(byId("estimate"), el("p", { class: "error" }, el("strong", {}, error.title), " ", error.message));
  }
}

function changed() {
  showCurl();
  clearTimeout(due);
  due = setTimeout(estimate, ESTIMATE_AFTER_MS);
}

const freeOf = (model) => model.num_blocks - ["protect_first", "protect_last"]
  .reduce((sum, path) => sum + Number(fields.get(path).input.value), 0);

/** The limits of the chosen model, as hints and as limits of the fields. */
function showLimits() {
  const model = modelOf();
  if (!model) return;
  const free = freeOf(model);
  byId("limits").textContent = `${count(model.num_blocks, "block")}, of which ${Math.max(free, 0)} can be removed; ${model.dtype}; context length ${model.max_positions ?? "unlimited"}.`;
  fields.get("num_remove").input.max = Math.max(free, 1);
  if (model.max_positions) fields.get("calibration.seqlen").input.max = model.max_positions;
  depth.show(model.num_blocks, free, variants.get(model.id) ?? [], model);
}

function showTarget() {
  for (const path of TARGETS) fields.get(path).node.hidden = path !== chosenTarget();
  depth.node.hidden = chosenTarget() !== TARGETS[0];
  byId("other-target").hidden = chosenTarget() === TARGETS[0];
  fields.get("calibration.path").node.hidden = fields.get("calibration.dataset").value !== "file";
  mix.node.hidden = !isMix();
  mix.show();
  for (const [path, field] of fields) if (path.startsWith("heal.")) field.node.hidden = !heals();
}

function build(document_, dense) {
  const { schemas } = document_.components;
  const owners = { calibration: schemas.CalibrationBody, heal: schemas.HealBody, evaluation: schemas.EvaluationBody };
  for (const path of [...TARGETS, ...Object.values(GROUPS).flat()]) {
    const owner = owners[path.split(".")[0]] ?? schemas.PruneJobBody;
    fields.set(path, new Field(path, owner.properties, schemas));
  }
  fields.get("calibration.dataset").input.append(el("option", { value: MIX }, "a mix of texts"));
  mix = new Mix(schemas, update);
  mix.set(MIXED.map((dataset) => ({ values: { dataset } })));
  depth = new Depth(fields.get(TARGETS[0]));
  fill(byId("form"), el("div", { class: "choices" }, modelChoice(dense),
    el("fieldset", {}, el("legend", {}, "Depth"), depth.node,
      el("p", { class: "note", id: "other-target" }, "Another target is selected under Advanced.")), kinds(choose)),
  submission(), el("details", { id: "advanced" }, el("summary", {}, el("h2", {}, "Advanced")),
    el("div", { class: "content" }, el("fieldset", {}, el("legend", {}, WORDS.target), el("div", { class: "fields" },
      el("div", {}, el("label", { for: "target" }, "Target"),
        el("select", { id: "target" }, TARGETS.map((path) => el("option", { value: path }, WORDS[path])))),
      TARGETS.slice(1).map((path) => fields.get(path).node))), groups(schemas))), asCommand());
}

const modelChoice = (dense) => el("fieldset", {}, el("legend", {}, "Model"), el("div", {}, el("label", { for: "model", class: "unseen" }, "Model"),
  el("select", { id: "model", "aria-describedby": "limits", oninput: beginDepth }, dense.map((model) => el("option", {}, model.id))),
  el("p", { class: "hint", id: "limits" })));

const groups = (schemas) => Object.entries(GROUPS).map(([title, paths]) => el("fieldset", {}, el("legend", {}, title),
  title === "Healing" ? healing(schemas.PruneJobBody.properties.heal) : null,
  el("div", { class: "fields" }, paths.map((path) => [fields.get(path).node, path === "calibration.path" ? mix.node : null]))));

/** One of the kinds was chosen: its values, undefined for a default. */
function choose(values, heals_) {
  for (const [path, value] of Object.entries(values)) {
    const field = fields.get(path);
    field.value = value ?? field.schema.default;
  }
  byId("heal").checked = heals_;
}

function beginDepth() {
  if (modelOf()) depth.begin(modelOf().num_blocks, freeOf(modelOf()));
}

const submission = () => el("section", { class: "submission", "aria-labelledby": "estimate-title" },
  el("div", {}, el("h2", { id: "estimate-title" }, "Estimate"),
    el("div", { id: "estimate", "aria-live": "polite" }, el("p", { class: "muted" }, "Choose a model and how far to prune."))),
  el("button", { class: "primary", type: "submit", id: "submit" }, "Submit the job"));

function asCommand() {
  const code = el("code", { id: "curl" });
  const button = el("button", { id: "copy", type: "button" }, "Copy");
  copies(button, code);
  return el("details", {}, el("summary", {}, el("h2", {}, "As a curl command")), el("div", { class: "content" },
    el("pre", { tabindex: 0, role: "region", "aria-label": "Command" }, code), button));
}

const healing = ({ description }) => el("div", {}, el("label", { for: "heal" },
  el("input", { id: "heal", type: "checkbox", "aria-describedby": "heal-hint", oninput: noKind }), WORDS.heal),
el("p", { class: "hint", id: "heal-hint" }, description));

/** The form of a job that heals what another has published. */
function buildHealing({ components: { schemas } }) {
  byId("about").textContent = "This job trains adapters for a pruned model to match the dense model's predictions. The healed model is published as a separate checkpoint.";
  for (const path of GROUPS.Healing) fields.set(path, new Field(path, schemas.HealBody.properties, schemas));
  fields.set("priority", new Field("priority", schemas.HealJobBody.properties, schemas));
  const nodes = (isFirst) => el("div", { class: "fields" },
    [...fields].filter(([path]) => FIRST_OF_HEALING.includes(path) === isFirst).map(([, field]) => field.node));
  fill(byId("form"), el("fieldset", {}, el("legend", {}, "Heal ", name(source)), nodes(true)), submission(),
    el("details", { id: "advanced" }, el("summary", {}, el("h2", {}, "Advanced")), el("div", { class: "content" }, nodes(false))), asCommand());
}

/** The settings of another job, as a start. */
function use(spec) {
  noKind();
  byId("model").value = spec.model;
  byId("heal").checked = spec.heal !== null;
  byId("target").value = TARGETS.find((path) => spec[path] !== null) ?? TARGETS[0];
  const texts = [spec.calibration].flat();
  const isOne = !Array.isArray(spec.calibration);
  const flat = { ...spec, calibration: isOne ? texts[0] : { ...texts[0], dataset: MIX, path: null } };
  for (const [path, field] of fields) {
    const found = path.split(".").reduce((value, part) => value?.[part], flat);
    if (found !== undefined && found !== null) field.value = found;
  }
  if (isOne) return;
  [like] = texts;
  mix.set(texts.map((source) => ({ source, values: { dataset: source.dataset, path: source.path, weight: source.weight } })));
}

function update() {
  if (source === null) {
    showTarget();
    showLimits();
  }
  changed();
}

async function submit(event) {
  event.preventDefault();
  await act(byId("submit"), async () => {
    try {
      const headers = { "Idempotency-Key": idempotencyKey(body()) };
      const job = await post(route, body(), { headers });
      say("submitted");
      location.assign(`/ui/jobs/${encodeURIComponent(job.id)}`);
    } catch (error) {
      if (error instanceof Problem && showErrors(error)) byId("form").querySelector("[aria-invalid=true]")?.focus();
      throw error;
    }
  });
}

function none() {
  fill(byId("form"), noModel());
}

await begin(async () => {
  const like = query.get("like");
  const [document_, found, job] = await Promise.all([json("/openapi.json"), json("/models"),
    like && json(`/prune-jobs/${encodeURIComponent(like)}`)]);
  isKeyRequired = requiresKey(document_, route, "post");
  const dense = found.data.filter((model) => model.variant === "dense" && model.backend !== "openai" && model.error === null);
  for (const model of dense) {
    models.set(model.id, model);
    variants.set(model.id, found.data.filter((other) => other.parent === model.id));
  }
  if (dense.length === 0) none();
  else {
    if (source !== null) buildHealing(document_);
    else build(document_, dense);
    if (source === null && models.has(query.get("model"))) byId("model").value = query.get("model");
    if (source === null) beginDepth();
    if (job) use(job.spec);
    update();
    byId("form").addEventListener("submit", submit);
    byId("form").addEventListener("input", update);
  }
});
