// What each depth gives and costs as a picture: speed-up to the right, perplexity upward, as SVG.

import { el } from "./dom.js";
import { ratio } from "./format.js";

const SVG = "http://www.w3.org/2000/svg"; // a name, which nothing is fetched from
// names stand behind the lines where there is room, and else the picture is higher than wide
const WIDE = { kind: "wide", width: 680, height: 300, left: 58, right: 96, top: 16, bottom: 44, numTicks: 6 };
const NARROW = { kind: "narrow", width: 340, height: 300, left: 46, right: 84, top: 12, bottom: 44, numTicks: 3 };

function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

/** Round values between two ends, about so many. */
function ticks({ low, high }, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => (first + index) * step);
}

/** From values to pixels, with room at the end. */
function scale(values, from, to) {
  const most = Math.max(1.05, ...values);
  const least = Math.min(1, ...values);
  const high = most + (most - least) * 0.06;
  return { low: least, high, at: (value) => from + ((value - least) / (high - least)) * (to - from) };
}

const label = (value) => `${Number(value.toPrecision(3))}×`;

function axes(x, y, { width, height, left, right, top, bottom, numTicks }) {
  const text = (attributes, words) => shape("text", { class: "tick", ...attributes }, words);
  const line = (x1, y1, x2, y2) => shape("line", { class: "grid", x1, y1, x2, y2 });
  return [
    ...ticks(x, numTicks).flatMap((value) => [line(x.at(value), top, x.at(value), height - bottom),
      text({ x: x.at(value), y: height - bottom + 18, "text-anchor": "middle" }, label(value))]),
    ...ticks(y, 5).flatMap((value) => [line(left, y.at(value), width - right, y.at(value)),
      text({ x: left - 8, y: y.at(value) + 5, "text-anchor": "end" }, label(value))]),
    text({ x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "speed-up of a token"),
  ];
}

/** One line of depths from the dense model on, with the bands of its points and its name at the end. */
function drawn({ kind, words, points }, x, y) {
  const path = [{ speed: 1, cost: 1 }, ...points].map(({ speed, cost }) => `${x.at(speed)},${y.at(cost)}`).join(" ");
  const last = points.at(-1);
  return [
    kind === "healed" ? null : shape("polyline", { class: `line ${kind}`, points: path }),
    ...points.flatMap(({ speed, cost, low, high, isTaken, title }) => [
      Number.isFinite(low) && Number.isFinite(high)
        ? shape("line", { class: `range ${kind}`, x1: x.at(speed), y1: y.at(low), x2: x.at(speed), y2: y.at(high) }) : null,
      shape("circle", { class: `point ${kind}`, cx: x.at(speed), cy: y.at(cost), r: 4.5 }, shape("title", {}, title)),
      isTaken ? shape("circle", { class: "taken", cx: x.at(speed), cy: y.at(cost), r: 10 }) : null]),
    shape("text", { class: kind, x: x.at(last.speed) + 12, y: y.at(last.cost) + 5 }, words),
  ].filter(Boolean);
}

function picture(title, lines, layout) {
  const { kind, width, height, left, right, top, bottom } = layout;
  const points = lines.flatMap((line) => line.points);
  const x = scale(points.map(({ speed }) => speed), left, width - right);
  const y = scale(points.flatMap(({ cost, high }) => [cost, high]).filter(Number.isFinite), height - bottom, top);
  return shape("svg", { class: `gain ${kind}`, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, ...axes(x, y, layout),
    shape("circle", { class: "point dense", cx: x.at(1), cy: y.at(1), r: 5 }, shape("title", {}, `dense: ${ratio(1)}`)),
    shape("text", { x: x.at(1) + 6, y: y.at(1) - 14 }, "dense"),
    ...lines.filter(({ points: found }) => found.length).flatMap((line) => drawn(line, x, y)));
}

/**
 * `lines` are `{kind, words, points}`, points `{speed, cost, low, high, isTaken, title}` from the least
 * pruned on; the dense model is at 1, 1.
 */
export function gain(title, lines) {
  if (lines.every(({ points }) => points.length === 0)) return null;
  return el("figure", { class: "picture" },
    el("figcaption", {}, "Perplexity on the text that lost most, as a multiple of the dense model's (lower is better), against speed (further right is better)"),
    [WIDE, NARROW].map((layout) => picture(title, lines, layout)));
}
