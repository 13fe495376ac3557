// The events of a job as they happen: reconnects, continues after the last event, misses none.

import { events, Problem, request } from "./api.js";

const SILENT_MS = 40000; // the service sends something at least every 15 s
const RETRY_S = 2;
const MAX_RETRY_S = 30;

const sleep = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });

/**
 * Call `onEvent` for each event until the service ends the stream behind one that `isFinal`: earlier
 * ones may be so too, before a job was retried. Raises `Problem` if none can follow.
 */
export async function follow(path, freshness, onEvent, isFinal) {
  let last = null;
  let failures = 0;
  let hasEnded = false;
  for (;;) {
    try {
      for await (const event of stream(path, last, () => freshness.fresh())) {
        failures = 0;
        last = event.id ?? last;
        hasEnded = isFinal(event.data);
        onEvent(event.data);
      }
      if (hasEnded) return;
      await sleep(RETRY_S); // the service has ended the stream, as it does before it stops
    } catch (error) {
      if (error instanceof Problem && !error.isTemporary) throw error;
      const problem = error instanceof Problem ? error
        : new Problem(0, { title: "The connection was lost.", detail: "" });
      failures += 1;
      freshness.failed(problem);
      await sleep(problem.retryAfterS ?? Math.min(RETRY_S * 2 ** (failures - 1), MAX_RETRY_S));
    }
  }
}

async function* stream(path, last, onAlive) {
  const silent = new AbortController();
  let timer = null;
  const alive = () => {
    onAlive();
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(), SILENT_MS);
  };
  timer = setTimeout(() => silent.abort(new DOMException("no answer", "TimeoutError")), SILENT_MS);
  const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
  try {
    const response = await request(path, { headers, signal: silent.signal });
    yield* events(response, alive);
  } finally {
    clearTimeout(timer);
  }
}
