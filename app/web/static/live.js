// Data that changes: asked for again and again, and marked when it is no longer current.

import { Problem } from "./api.js";
import { alertOf, byId } from "./dom.js";
import { seconds } from "./format.js";

const MAX_WAIT_S = 30;

/** Say that what is shown is old, or that it is current again. */
export class Freshness {
  constructor() {
    this.at = null;
    this.timer = null;
  }

  fresh() {
    this.at = Date.now();
    clearInterval(this.timer);
    this.timer = null;
    byId("stale").hidden = true;
  }

  failed(problem) {
    const show = () => {
      const banner = byId("stale");
      banner.hidden = false;
      const age = this.at === null ? "" : `Last updated ${seconds(Math.round((Date.now() - this.at) / 1000))} ago. `;
      const next = problem.isTemporary ? " This page tries again by itself." : "";
      banner.textContent = `${age}${problem.title} ${problem.message}${next}`;
    };
    clearInterval(this.timer);
    show();
    this.timer = setInterval(show, 5000);
  }
}

/** Call `load` now and every `everyS` while the page is visible. Returns a function for now.
 * A refusal that asking again cannot change ends it. */
export function poll(load, everyS) {
  const freshness = new Freshness();
  let timer = null;
  let failures = 0;
  let isRunning = false;
  let isRefused = false;

  async function run() {
    clearTimeout(timer);
    if (isRunning) return;
    isRunning = true;
    try {
      await load();
      failures = 0;
      isRefused = false;
      freshness.fresh();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      failures += 1;
      isRefused = !error.isTemporary;
      freshness.failed(error);
    } finally {
      isRunning = false;
      const waitS = Math.min(everyS * 2 ** Math.min(failures, 4), Math.max(everyS, MAX_WAIT_S));
      if (!document.hidden && !isRefused) timer = setTimeout(run, waitS * 1000);
    }
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : run()));
  run();
  return run;
}

/** Run what a page begins with; an error is shown, with a way to try again where that may help. */
export async function begin(work) {
  alertOf(null);
  try {
    await work();
  } catch (error) {
    document.querySelectorAll("[aria-busy]").forEach((node) => node.removeAttribute("aria-busy"));
    alertOf(error, error instanceof Problem && error.isTemporary ? () => location.reload() : null);
    if (!(error instanceof Problem)) throw error;
  }
}

/** Run something that a button asks for; the button waits, and an error is shown. */
export async function act(button, work) {
  if (button.getAttribute("aria-disabled") === "true") return;
  alertOf(null);
  button.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
  try {
    await work();
  } catch (error) {
    alertOf(error);
    if (!(error instanceof Problem)) throw error;
  } finally {
    button.removeAttribute("aria-disabled");
  }
}
