// The list of jobs, newest first, in pages.

import { json } from "./api.js";
import { byId, el, fill, name, table } from "./dom.js";
import { empty } from "./empty.js";
import { moment } from "./format.js";
import { poll } from "./live.js";
import { FINAL, statusOf, targetOf } from "./status_words.js";

const PAGE = 20;
let numPages = 1;
byId("status").value = new URLSearchParams(location.search).get("status") ?? "";

/** All pages that are shown, one request each. */
async function pages() {
  const found = { data: [], has_more: true };
  for (let index = 0; index < numPages && found.has_more; index += 1) {
    const query = new URLSearchParams({ limit: PAGE });
    if (byId("status").value) query.set("status", byId("status").value);
    if (found.data.length) query.set("after", found.data.at(-1).id);
    const page = await json(`/prune-jobs?${query}`);
    found.data.push(...page.data);
    found.has_more = page.has_more;
  }
  return found;
}

function progressOf(job) {
  if (FINAL.has(job.status) && job.source !== null) return job.status === "succeeded" ? "healed" : null;
  if (FINAL.has(job.status)) return `${job.removed_blocks.length} removed`;
  const { ratio } = job.heal_progress ?? job.repair_progress ?? job.progress;
  const phase = job.phase ?? (job.status === "running" ? "starts" : "waits");
  const label = `${phase}, ${Math.round(ratio * 100)} %`;
  return [el("progress", { value: ratio, max: 1, "aria-label": `Progress of ${job.id}` }),
    el("span", { class: "sub" }, label)];
}

const row = (job) => [
  el("a", { href: `/ui/jobs/${encodeURIComponent(job.id)}`, "data-key": job.id, title: job.id }, name(`…${job.id.slice(-6)}`)),
  el("span", { title: job.source ?? job.model }, name(job.model)), targetOf(job), statusOf(job), progressOf(job), moment(job.created_at),
];

function none() {
  if (byId("status").value) return empty("No job has this status.");
  return empty("No jobs yet. A job finds the least important blocks of a model; every depth can then be served.",
    el("p", {}, el("a", { "data-needs": "jobs", href: "/ui/jobs/new" }, "Submit the first job")));
}

const COLUMNS = ["job", "model", "target", "status", "progress", "created"]
  .map((title) => ({ title }));

const refresh = poll(async () => {
  const found = await pages();
  fill(byId("list"), found.data.length ? table("Jobs", COLUMNS, found.data.map(row)) : none(),
    found.has_more ? el("p", {}, el("button", { "data-key": "more", onclick: () => {
      numPages += 1;
      refresh();
    } }, "Show older jobs")) : null);
}, 3);

byId("status").addEventListener("change", () => {
  numPages = 1;
  const query = byId("status").value ? `?${new URLSearchParams({ status: byId("status").value })}` : "";
  history.replaceState(null, "", `/ui/jobs${query}`);
  refresh();
});
