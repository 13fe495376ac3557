// Ratios with their intervals as a picture: one line each, drawn as SVG in the colours of the page.

import { el } from "./dom.js";
import { shape, ticks } from "./svg.js";

const FOOT = 26; // of the axis
// in wide pictures names are beside their lines, in narrow ones above them; `line` is where in the row
const WIDE = { kind: "wide", width: 760, from: 260, margin: 24, row: 30, line: 15, words: { x: 248, y: 20, "text-anchor": "end" } };
const NARROW = { kind: "narrow", width: 360, from: 16, margin: 16, row: 44, line: 31, words: { x: 0, y: 16 } };

/** `rows` are `{label, value, low, high, ideal, verdict}`; a line marks 1, and another each ideal. */
export function forest(label, rows) {
  return el("div", { class: "picture" }, [WIDE, NARROW].map((layout) => picture(label, rows, layout)));
}

function picture(label, rows, { kind: size, width, from: left, margin, row, line: middle, words: place }) {
  const known = [1, ...rows.flatMap(({ value, low, high, ideal }) => [value, low, high, ideal])].filter(Number.isFinite);
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const room = (most - least || 0.2) * 0.05;
  const [low, high] = [least - room, most + room];
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - margin);
  const bottom = rows.length * row;
  const line = (kind, x1, y1, x2, y2) => shape("line", { class: kind, x1, y1, x2, y2 });
  const axis = ticks(low, high, 5).flatMap((value) => [line("grid", x(value), 0, x(value), bottom),
    shape("text", { class: "tick", x: x(value), y: bottom + 18, "text-anchor": "middle" }, `${Number(value.toPrecision(3))}×`)]);
  const drawn = rows.flatMap(({ label: words, value, low: from, high: to, ideal, verdict }, index) => {
    const y = index * row + middle;
    const kind = { faster: "faster", slower: "slower", undecided: "undecided" }[verdict] ?? "equal";
    return [shape("text", { ...place, y: index * row + place.y }, words),
      Number.isFinite(ideal) ? line("ideal", x(ideal), y - 9, x(ideal), y + 9) : null,
      Number.isFinite(from) && Number.isFinite(to) ? line(`range ${kind}`, x(from), y, x(to), y) : null,
      Number.isFinite(value) ? shape("circle", { class: `point ${kind}`, cx: x(value), cy: y, r: 5.5 }) : null].filter(Boolean);
  });
  return shape("svg", { class: `forest ${size}`, viewBox: `0 0 ${width} ${bottom + FOOT}`, role: "img", "aria-label": label },
    ...axis, line("one", x(1), 0, x(1), bottom), ...drawn);
}
