// What Vercel's AI SDK does with tools: run by a node that has it, with the service's URL.

import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const service = createOpenAICompatible({ name: "sleb", baseURL: process.argv[2] });
const tools = {
  weather: tool({ inputSchema: z.object({ city: z.literal("Oslo") }), execute: () => "sunny=" }),
  clock: tool({ inputSchema: z.object({ zone: z.literal(3) }), execute: () => "noon+" }),
};
const asked = {
  model: service("scripted"),
  prompt: "the dog",
  temperature: 0,
  maxRetries: 0,
  stopWhen: stepCountIs(5),
  tools,
};

const summary = (steps, text) => [...steps.flatMap((step) => step.toolCalls.map((call) => call.toolName)), text];
const generated = await generateText(asked);
const streamed = streamText({ ...asked, onError: ({ error }) => { throw error; } });
let numPieces = 0;
for await (const part of streamed.fullStream) numPieces += part.type === "tool-input-delta";
if (numPieces < 4) throw new Error(`${numPieces} pieces of arguments`);

const manifest = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`));
const packages = ["ai", "@ai-sdk/openai-compatible"];
console.log(JSON.stringify({
  said: {
    generateText: summary(generated.steps, generated.text),
    streamText: summary(await streamed.steps, await streamed.text),
  },
  versions: Object.fromEntries(packages.map((name) => [name, manifest(name).version])),
}));
