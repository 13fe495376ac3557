// The trajectory of a removal order, as the picture of its checkpoint has it: a panel for each text, with the
// blocks that went. A depth under the pointer is told in all panels, and a click chooses it.

import { blocks } from "./blocks.js";
import { el, fill, name } from "./dom.js";
import { interval, perplexity, ratio } from "./format.js";
import { runs, shape, ticks } from "./svg.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [320, 250, 40, 50, 14, 58];
const MAX_RATIO = 20; // a broken model is drawn at the top
const LINE_HEIGHT = 15; // of two labels at the end of lines
const KINDS = { served: (point) => point.repair !== "healed", raw: (point) => point.raw, healed: (point) => point.repair === "healed" };
const WORDS = { served: "repaired", raw: "unrepaired", healed: "healed" };

const clipped = (value) => Math.min(value, MAX_RATIO);
const depthsOf = (points) => [...new Set(points.map(({ depth }) => depth))].sort((one, other) => one - other);

/** The points of a line on a text, by depth: `{depth, ratio, perplexity, low, high}`. */
function lineOf(kind, points) {
  const found = points.filter(KINDS[kind]).map((point) => ({ depth: point.depth, ...(kind === "raw" ? { ...point.raw, low: null, high: null } : point) }));
  return found.filter((point) => Number.isFinite(point.ratio)).sort((one, other) => one.depth - other.depth);
}

function scaleOf(points) {
  const found = points.flatMap(({ ratio: value, low, high, raw }) => [value, low, high, raw?.ratio]).filter(Number.isFinite).map(clipped);
  const [low, high] = [Math.min(1, ...found), Math.max(1.05, ...found)];
  const room = (high - low) * 0.05;
  const last = Math.max(...depthsOf(points));
  return {
    low: low - room, high: high + room, step: (WIDTH - LEFT - RIGHT) / last,
    x: (depth) => LEFT + (depth / last) * (WIDTH - LEFT - RIGHT),
    y: (value) => HEIGHT - BOTTOM - ((clipped(value) - low + room) / (high - low + 2 * room)) * (HEIGHT - BOTTOM - TOP),
  };
}

const text = (attributes, words) => shape("text", attributes, words);

function axes(points, scale) {
  const speeds = new Map(points.map(({ depth, speed }) => [depth, speed]));
  const every = (width) => Math.ceil(width / scale.step);
  const last = Math.max(...speeds.keys());
  const at = (depth) => ({ x: scale.x(depth), "text-anchor": "middle" });
  const shown = (depth, width) => (last - depth) % every(width) === 0;
  return [
    ...ticks(scale.low, scale.high, 4).flatMap((value) => [
      shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(value), y2: scale.y(value) }),
      text({ class: "tick", x: LEFT - 6, y: scale.y(value) + 4, "text-anchor": "end" }, `${Number(value.toPrecision(3))}×`)]),
    ...[0, ...depthsOf(points)].flatMap((depth) => [
      shown(depth, 22) ? text({ class: "tick", ...at(depth), y: HEIGHT - 40 }, String(depth)) : null,
      speeds.get(depth) && shown(depth, 44) ? text({ class: "tick", ...at(depth), y: HEIGHT - 25 }, ratio(speeds.get(depth).ratio)) : null]),
    text({ class: "tick", x: LEFT, y: HEIGHT - 6 }, "removed blocks, speed-up"),
  ].filter(Boolean);
}

function drawn(kind, line, scale) {
  const place = ({ depth, ratio: value }) => `${scale.x(depth)},${scale.y(value)}`;
  return [
    ...runs([{ depth: 0, ratio: 1 }, ...line]).map((run) => shape("polyline", { class: `line ${kind}`, points: run.map(place).join(" ") })),
    ...line.filter(({ low, high }) => Number.isFinite(low) && Number.isFinite(high)).map(({ depth, low, high }) =>
      shape("line", { class: `range ${kind}`, x1: scale.x(depth), x2: scale.x(depth), y1: scale.y(low), y2: scale.y(high) })),
    ...line.map((point) => shape("circle", { class: `point ${kind}`, cx: scale.x(point.depth), cy: scale.y(point.ratio), r: 4 })),
  ];
}

/** The last perplexity of each line, beside its end, and below each other where ends are close. */
function ends(lines, scale) {
  let free = -Infinity;
  return lines.filter(({ line }) => line.length).map(({ kind, line }) => ({ kind, last: line.at(-1) }))
    .sort((one, other) => other.last.ratio - one.last.ratio).map(({ kind, last }) => {
      const y = Math.max(free, scale.y(last.ratio) + 4);
      free = y + LINE_HEIGHT;
      return text({ class: kind, x: scale.x(last.depth) + 9, y }, perplexity(last.perplexity));
    });
}

function panel(domain, points, scale, whole) {
  const lines = Object.keys(KINDS).map((kind) => ({ kind, line: lineOf(kind, points) }));
  const columns = depthsOf(points).map((depth) => shape("rect", { class: "column", "data-depth": depth, x: scale.x(depth) - scale.step / 2,
    y: TOP - 8, width: scale.step, height: HEIGHT - TOP }));
  return el("div", {}, el("h3", {}, domain), el("p", { class: "note" }, `${points[0].text}; dense ${perplexity(points[0].dense)}`),
    shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Perplexity on ${domain} by removed blocks; a table below has its values` },
      ...columns, ...axes(whole, scale), shape("circle", { class: "point dense", cx: scale.x(0), cy: scale.y(1), r: 4 }),
      ...[...lines].reverse().flatMap(({ kind, line }) => drawn(kind, line, scale)), ...ends(lines, scale)));
}

/** What a depth gives and costs, in a line. */
function words(depth, points) {
  const here = points.filter((point) => point.depth === depth);
  const gone = depthsOf(points).filter((each) => each <= depth).map((each) => points.find((point) => point.depth === each).block);
  const { speed } = here[0];
  return [name(`@-${depth}`), ` without ${gone.join(", ")}: `, speed ? `${ratio(speed.ratio)} as fast (${speed.how}); ` : "", "perplexity ",
    here.map((point, index) => [index ? ", " : "", point.domain, " ", ratio(point.ratio),
      point.low === null ? null : `\u00a0(${interval(point.low, point.high)})`, point.repair === "healed" ? " healed" : ""])];
}

/**
 * `points` are those of `pointsOf` of one removal order. `chosen` is the depth that is shown at first, and
 * `onPick` is called with one that is clicked.
 */
export function trajectory(points, numBlocks, chosen = null, onPick = null) {
  const domains = [...Map.groupBy(points, ({ domain }) => domain)];
  const scale = scaleOf(points);
  const kinds = Object.keys(KINDS).filter((kind) => points.some(KINDS[kind]));
  const isRepaired = points.some(({ raw }) => raw);
  const rounds = new Map(points.map(({ block, depth }) => [block, depth]));
  const told = el("p", { class: "told" });
  const strip = numBlocks === null ? null : blocks(numBlocks, rounds);
  const panels = el("div", { class: "panels" }, domains.map(([domain, found]) => panel(domain, found, scale, points)));
  const whole = el("figure", { class: "trajectory" },
    el("figcaption", {}, "Perplexity, × dense (lower is better), by removed blocks; bars are 95 % intervals, line ends show perplexities. ",
      kinds.map((kind) => el("span", { class: `key ${kind}` }, kind === "served" && !isRepaired ? "pruned" : WORDS[kind]))),
    panels, told, strip);
  const show = (depth) => {
    fill(told, words(depth, points));
    for (const column of panels.querySelectorAll(".column")) column.classList.toggle("now", Number(column.dataset.depth) === depth);
    for (const block of strip?.querySelectorAll("[data-round]") ?? []) block.classList.toggle("later", Number(block.dataset.round) > depth);
  };
  panels.addEventListener("pointerover", ({ target }) => { if (target.dataset.depth) show(Number(target.dataset.depth)); });
  panels.addEventListener("click", ({ target }) => { if (target.dataset.depth && onPick) onPick(Number(target.dataset.depth)); });
  show(chosen ?? depthsOf(points).at(-1));
  return whole;
}
