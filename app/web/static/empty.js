// What to do first, where there is nothing to show yet.

import { el } from "./dom.js";

/** Nothing is there: `sentence` says what, and the commands or the link below it change that. */
export const empty = (sentence, ...below) => el("div", { class: "empty" }, el("p", {}, sentence), below);

export const commands = (...lines) => el("pre", {}, lines.join("\n"));

export const noModel = () => empty("No models yet. Add one:", commands("sleb models add Qwen/Qwen3-0.6B"),
  el("p", { class: "note" }, el("code", {}, "sleb demo"), " downloads a small model, prunes it and compares the two."));
