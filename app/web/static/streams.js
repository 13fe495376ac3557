// Streams of generated text, of `/generate` or of the chat route, in one form; and of a comparison.

import { events, Problem, request } from "./api.js";

/**
 * Generate for one prompt. Yields `{text}` as it comes and at last `{done}` with the finish reason,
 * tokens and times in seconds; null where the route does not tell. Raises `Problem`.
 */
export async function* generate({ model, prompt, sampling, isChat, signal }) {
  const started = performance.now();
  yield* isChat ? chat(model, prompt, sampling, signal, started)
    : plain(model, prompt, sampling, signal);
}

/** The result of a comparison. `onProgress` has the turns that are done, and all. Raises `Problem`. */
export async function compared(body, onProgress, signal) {
  const response = await request("/compare", { method: "POST", signal, body: { ...body, stream: true } });
  for await (const { event, data } of events(response)) {
    if (event === "error") throw new Problem(data.status, data);
    if (event === "done") return data;
    if (event === "progress") onProgress(data.done, data.total);
  }
  throw new Problem(0, { title: "The comparison ended without a result.", detail: "Compare again." });
}

async function* plain(model, prompt, sampling, signal) {
  const response = await request("/generate", { method: "POST", signal,
    body: { model, prompt, stream: true, ...sampling } });
  for await (const { event, data } of events(response)) {
    if (event === "error") throw new Problem(data.status, data);
    if (event === "text") yield { text: data.text };
    if (event === "done") {
      const [output] = data.outputs;
      yield { done: { reason: output.finish_reason, promptTokens: output.prompt_tokens,
        tokens: output.completion_tokens, ttftS: output.timings.ttft_s, tpotS: output.timings.tpot_s } };
    }
  }
}

async function* chat(model, prompt, { max_new_tokens: maxTokens, ...sampling }, signal, started) {
  const body = { model, messages: [{ role: "user", content: prompt }], stream: true,
    stream_options: { include_usage: true }, max_completion_tokens: maxTokens, ...sampling };
  const response = await request("/v1/chat/completions", { method: "POST", signal, body });
  let [firstAt, lastAt, reason, usage] = [null, null, null, null];
  for await (const { data } of chunks(response)) {
    const [choice] = data.choices ?? [];
    usage = data.usage ?? usage;
    reason = choice?.finish_reason ?? reason;
    if (choice?.delta?.content) {
      lastAt = performance.now();
      firstAt ??= lastAt;
      yield { text: choice.delta.content };
    }
  }
  const tokens = usage?.completion_tokens ?? null;
  yield { done: { reason, promptTokens: usage?.prompt_tokens ?? null, tokens,
    ttftS: firstAt && (firstAt - started) / 1000,
    tpotS: tokens > 1 ? (lastAt - firstAt) / 1000 / (tokens - 1) : null } };
}

/** The events of OpenAI's stream. An error is an event as well. */
async function* chunks(response) {
  for await (const event of events(response)) {
    if (event.data?.error) throw new Problem(500, { title: "The stream ended with an error.", detail: event.data.error.message });
    yield event;
  }
}
