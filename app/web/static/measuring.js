// The measurement of a frontier that this page has asked for, and how far it is.

import { events, Problem, request } from "./api.js";
import { el, name } from "./dom.js";

export const FRONTIERS = "/frontiers";
let now = null; // { model, step, stopper } of the one that runs

/** Measure, and call `onStep` with every step. Leaving the page stops it. Raises `Problem`. */
export async function measureFrontier(body, onStep) {
  const stopper = new AbortController();
  now = { model: body.model, step: "starts", stopper };
  onStep();
  try {
    const response = await request(FRONTIERS, { method: "POST", signal: stopper.signal, body: { ...body, stream: true } });
    for await (const { event, data } of events(response)) {
      if (event === "error") throw new Problem(data.status, data);
      if (event === "progress") {
        now.step = data.step;
        onStep();
      }
    }
  } catch (error) {
    if (!stopper.signal.aborted) throw error;
  } finally {
    now = null;
    onStep();
  }
}

/** A line about the one that runs, or null. */
export function measuringLine() {
  if (now === null) return null;
  const { model, step, stopper } = now;
  return el("p", { class: "running" }, el("span", {}, "Measuring ", name(model)), el("span", { class: "muted" }, step),
    el("span", { class: "row" }, el("button", { "data-key": "stop measuring", onclick: () => stopper.abort() }, "Stop"),
      el("span", { class: "muted" }, "Leaving this page stops it, too.")));
}
