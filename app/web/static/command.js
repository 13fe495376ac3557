// Commands for a shell, with a button that copies them.

import { el, say } from "./dom.js";

const SHOWN_MS = 2000;

/** Let a button copy the text of a node; where a page may not copy, select the text instead. */
export function copies(button, node) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(node.textContent);
      button.textContent = "Copied";
      say("Copied");
      setTimeout(() => { button.textContent = "Copy"; }, SHOWN_MS);
    } catch { // without TLS, and not on this machine
      getSelection().selectAllChildren(node);
      say("Selected: copy it with your keyboard");
    }
  });
}

/** A command in a frame that scrolls; `label` says what it is for. */
export function command(label, words) {
  const code = el("code", {}, words);
  const button = el("button", { type: "button", "aria-label": `Copy: ${label}` }, "Copy");
  copies(button, code);
  return [el("pre", { tabindex: 0, role: "region", "aria-label": label }, code), button];
}
