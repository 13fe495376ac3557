// One output beside others: its text as it comes, what differs from the baseline, and its numbers.

import { el, facts, fill, shortened, text } from "./dom.js";
import { interval, ratio, seconds } from "./format.js";
import { wordDiff } from "./word_diff.js";

export class Output {
  constructor(side, label) {
    this.side = side;
    this.content = "";
    this.isOver = false;
    this.body = el("div", { class: "output", tabindex: 0, role: "region", "aria-label": label });
    this.numbers = el("div", { class: "note" }, "waiting");
    this.speed = el("p", { class: "speed" });
    this.node = el("article", { class: "card" }, el("h3", {}, shortened(side)), this.speed, this.body, this.numbers);
  }

  /** Show the text; once it and the baseline's have ended, with the words marked that differ. */
  show(baseline) {
    if (baseline === this || baseline === undefined || !baseline.isOver || !this.isOver || baseline.content === this.content) {
      return fill(this.body, text(this.content));
    }
    const parts = wordDiff(baseline.content, this.content);
    const isEqual = parts.every(({ isOther }) => !isOther); // it ends earlier
    fill(this.body, el("span", { class: "text", dir: "auto" }, parts.map(({ text: words, isOther }) =>
      (isOther ? el("mark", {}, words) : words)), isEqual ? el("mark", { title: "the baseline's text continues" }, "∎") : null));
  }

  finish({ reason, promptTokens, tokens, ttftS, tpotS }) {
    this.isOver = true;
    fill(this.numbers, facts([["tokens", `${promptTokens ?? "–"} prompt, ${tokens ?? "–"} generated`],
      ["first token", seconds(ttftS)], ["per token after", seconds(tpotS)], ["finish reason", reason]]));
  }

  /** The verdict of a comparison on this variant, above its text. */
  compared(found) {
    if (!found?.tpot) return fill(this.speed, "baseline");
    const { ratio: value, low, high, verdict } = found.tpot;
    fill(this.speed, el("strong", {}, ratio(value)), " speed-up per token ",
      el("span", { class: "muted" }, low === null ? "" : `[${interval(low, high)}], ${verdict}`));
  }
}
