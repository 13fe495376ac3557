// What each depth gives and costs as a picture: speed-up to the right, perplexity upward, as SVG.

import { el } from "./dom.js";
import { ratio } from "./format.js";
import { runs, shape, ticks } from "./svg.js";

// names stand behind the lines where there is room, and else the picture is higher than wide
const WIDE = { kind: "wide", width: 680, height: 340, left: 58, right: 100, top: 16, bottom: 44, numTicks: 6 };
const NARROW = { kind: "narrow", width: 340, height: 320, left: 52, right: 100, top: 12, bottom: 44, numTicks: 3 };

/** From values to pixels, with room at the end. */
function scale(values, from, to) {
  const most = Math.max(1.05, ...values);
  const least = Math.min(1, ...values);
  const span = most - least;
  const [low, high] = [least < 1 ? least - 0.1 * span : least, most + 0.06 * span]; // names are below the points
  return { low, high, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}

const label = (value) => `${Number(value.toPrecision(3))}×`;

function axes(x, y, load, { width, height, left, right, top, bottom, numTicks }) {
  const text = (attributes, words) => shape("text", { class: "tick", ...attributes }, words);
  const line = (x1, y1, x2, y2) => shape("line", { class: "grid", x1, y1, x2, y2 });
  return [
    ...ticks(x.low, x.high, numTicks).flatMap((value) => [line(x.at(value), top, x.at(value), height - bottom),
      text({ x: x.at(value), y: height - bottom + 18, "text-anchor": "middle" }, label(value))]),
    ...ticks(y.low, y.high, 5).flatMap((value) => [line(left, y.at(value), width - right, y.at(value)),
      text({ x: left - 8, y: y.at(value) + 5, "text-anchor": "end" }, label(value))]),
    text({ x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, `speed-up ${load}`),
  ];
}

/** The band of the intervals along a line, where all are known. */
function band({ kind, points }, x, y) {
  if (kind !== "served" || points.some(({ low, high }) => !Number.isFinite(low) || !Number.isFinite(high))) return null;
  const corners = [[1, 1], ...points.map(({ speed, high }) => [speed, high]), ...points.map(({ speed, low }) => [speed, low]).reverse()];
  return shape("polygon", { class: `band ${kind}`, points: corners.map(([speed, cost]) => `${x.at(speed)},${y.at(cost)}`).join(" ") });
}

/** One line of depths from the dense model on, with its name at the end; int8 weights are a start of their own. */
function drawn(line, x, y) {
  const { kind, words, points } = line;
  const start = kind === "int8" ? [] : [{ depth: 0, speed: 1, cost: 1 }];
  const path = (run) => run.map(({ speed, cost }) => `${x.at(speed)},${y.at(cost)}`).join(" ");
  const last = points.at(-1);
  const area = band(line, x, y);
  return [
    area, ...runs([...start, ...points]).map((run) => shape("polyline", { class: `line ${kind}`, points: path(run) })),
    ...points.flatMap(({ speed, cost, low, high, mark, title, short }) => [
      area === null && kind !== "raw" && Number.isFinite(low) && Number.isFinite(high)
        ? shape("line", { class: `range ${kind}`, x1: x.at(speed), y1: y.at(low), x2: x.at(speed), y2: y.at(high) }) : null,
      shape("circle", { class: `point ${kind}`, cx: x.at(speed), cy: y.at(cost), r: 4.5 }, shape("title", {}, title)),
      short ? shape("text", { class: "depth", x: x.at(speed) + 9, y: y.at(cost) + 16 }, short) : null,
      mark ? shape("circle", { class: mark, cx: x.at(speed), cy: y.at(cost), r: 10 }) : null]),
    shape("text", { class: kind, x: x.at(last.speed) + 12, y: y.at(last.cost) + 5 }, words),
  ].filter(Boolean);
}

/** Where a depth keeps the limits of the advice. */
function kept(limits, x, y, { width, right, numTicks }) {
  if (!limits || limits.min_speedup >= x.high) return [];
  const [left, top] = [x.at(limits.min_speedup), y.at(Math.min(limits.max_ratio, y.high))];
  const end = width - right;
  const words = end - left > 160 ? { x: left + 6 } : { x: end - 6, "text-anchor": "end" }; // few depths are just beyond the limit
  return [shape("rect", { class: "kept", x: left, y: top, width: end - left, height: y.at(1) - top }),
    numTicks > 3 ? shape("text", { class: "tick", y: top - 6, ...words }, "meets the limits") : null].filter(Boolean);
}

/** What no other point beats, from the slowest to the fastest. */
function frontier(points) {
  const sorted = points.toSorted((one, other) => other.speed - one.speed || one.cost - other.cost);
  let least = Infinity;
  return sorted.filter(({ cost }) => {
    const isBest = cost < least;
    least = Math.min(least, cost);
    return isBest;
  }).reverse();
}

function picture(title, lines, limits, load, layout) {
  const { kind, width, height, left, right, top, bottom } = layout;
  const points = lines.flatMap((line) => line.points);
  const x = scale(points.map(({ speed }) => speed), left, width - right);
  const costs = lines.flatMap((line) => line.points.flatMap(({ cost, low, high }) => (line.kind === "raw" ? [cost] : [cost, low, high])));
  const y = scale(costs.filter(Number.isFinite), height - bottom, top);
  return shape("svg", { class: `gain ${kind}`, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, ...kept(limits, x, y, layout), ...axes(x, y, load, layout),
    shape("polyline", { class: "frontier", points: frontier([{ speed: 1, cost: 1 }, ...points]).map(({ speed, cost }) => `${x.at(speed)},${y.at(cost)}`).join(" ") }),
    shape("circle", { class: "point dense", cx: x.at(1), cy: y.at(1), r: 5 }, shape("title", {}, `dense: ${ratio(1)}`)),
    shape("text", { x: x.at(1) - 8, y: y.at(1) - 14, "text-anchor": "end" }, "dense"),
    ...lines.filter(({ points: found }) => found.length).flatMap((line) => drawn(line, x, y)));
}

/**
 * `lines` are `{kind, words, points}`: `words` are behind the last point, and `short` is below any other. Points
 * are `{depth, speed, cost, low, high, mark, title, short}` from the least pruned on; the dense model is at 1, 1. `load` is in words.
 */
export function gain(title, lines, limits, load) {
  if (lines.every(({ points }) => points.length === 0)) return null;
  return el("figure", { class: "picture" },
    el("figcaption", {}, `Perplexity on the worst text, × dense (lower is better), against the speed-up ${load} (further right is better). The broad line joins what no other variant beats.`),
    [WIDE, NARROW].map((layout) => picture(title, lines, limits, load, layout)));
}
