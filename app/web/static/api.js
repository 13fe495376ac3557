// The REST API: requests, its problem documents as errors, and server-sent events.

const TIMEOUT_MS = 15000;
export const SIGN_IN = "/ui/sign-in";
const OPENAI_END = "[DONE]"; // the last event of OpenAI's streams, the only one without JSON

/** An error that the service, or the way to it, has reported. */
export class Problem extends Error {
  constructor(status, { title, detail, type, param, errors } = {}, retryAfterS = null) {
    super(detail ?? "");
    this.status = status;
    this.title = title ?? `The service returned status ${status}.`;
    this.type = type ?? "";
    this.param = param ?? null;
    this.errors = errors ?? [];
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same request may succeed later. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

const UNREACHABLE = {
  title: "The service does not respond.",
  detail: "Check the terminal or the log of sleb up.",
};

/** Go to the sign-in, and back afterwards. */
export function signIn() {
  location.replace(`${SIGN_IN}?${new URLSearchParams({ next: location.pathname + location.search })}`);
}

/** Send a request, and return its response. Raises `Problem`. */
export async function request(path, { method = "GET", body, signal, headers = {} } = {}) {
  const sent = { ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers: sent, signal, credentials: "same-origin",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw error;
    throw new Problem(0, UNREACHABLE);
  }
  if (response.status === 401 && location.pathname !== SIGN_IN) signIn();
  if (!response.ok) {
    const retryAfterS = Number(response.headers.get("Retry-After")) || null;
    throw new Problem(response.status, await response.json().catch(() => ({})), retryAfterS);
  }
  return response;
}

/** The JSON of a response; null if it has none. Raises `Problem`. */
export async function json(path, options = {}) {
  const signal = options.signal ?? AbortSignal.timeout(options.timeoutMs ?? TIMEOUT_MS);
  const response = await request(path, { ...options, signal });
  return response.status === 204 ? null : response.json();
}

export const post = (path, body, options = {}) => json(path, { ...options, method: "POST", body });

/** Iterate over the server-sent events of a response, as `{id, event, data}` with JSON data.
 * `onAlive` is called whenever bytes arrive, also for a comment that keeps the connection open. */
export async function* events(response, onAlive = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onAlive();
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const fields = { id: null, event: "message", data: [] };
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "data") fields.data.push(value);
    else if (field === "id" || field === "event") fields[field] = value;
  }
  if (fields.data.length === 0) return null; // a comment that keeps the connection open
  const text = fields.data.join("\n");
  return text === OPENAI_END ? null : { ...fields, data: JSON.parse(text) };
}
