// All blocks of a model in a strip, with the round in which each was removed.

import { el } from "./dom.js";

/** `rounds` has the round by block. */
export function blocks(numBlocks, rounds) {
  const items = Array.from({ length: numBlocks }, (_, block) => {
    const round = rounds.get(block);
    return el("li", { class: round && "gone", "data-round": round }, el("span", { class: "unseen" }, round ? `block ${block}, removed in round ` : `block ${block} kept`),
      el("span", { "aria-hidden": round ? null : "true" }, round ?? "·"));
  });
  return el("div", {}, el("p", { class: "note" }, "All blocks from first to last. A number is the round in which a block was removed."),
    el("ul", { class: "blocks" }, items));
}
