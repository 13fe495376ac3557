// Line plots in the colours of the page, over uPlot. It is started after the first frame: numbers come first.

import { byId } from "./dom.js";
import { number } from "./format.js";

// Okabe and Ito, which colour-blind readers can distinguish; lighter ones on a dark page.
const LIGHT = ["#0072B2", "#C44E00", "#00795A", "#8F4A7A", "#6B6B00", "#444444"];
const DARK = ["#56B4E9", "#F0A05A", "#35C7A0", "#E29CCB", "#D9D05A", "#C8C8C8"];

const isDark = matchMedia("(prefers-color-scheme: dark)");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const colour = (index) => (isDark.matches ? DARK : LIGHT)[index % LIGHT.length];

const frame = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });
let loading = null;
let uPlot = null;

/** Start uPlot, which the browser has fetched by then. */
function load() {
  loading ??= frame().then(() => import(byId("uplot").href)).then((found) => { ({ uPlot } = found); });
  return loading;
}

function axis(label, values) {
  return { label, labelSize: 22, stroke: css("--muted"), grid: { stroke: css("--faint"), width: 1 },
    ticks: { stroke: css("--faint") }, font: "13px system-ui", labelFont: "13px system-ui", values };
}

/** Vertical bars from `low` to `high` of each point, drawn over the lines. */
function bars(plot, series) {
  const { ctx } = plot;
  ctx.save();
  ctx.lineWidth = devicePixelRatio * 1.5;
  series.forEach(({ bounds, color }, index) => {
    if (!bounds || !plot.series[index + 1].show) return;
    ctx.strokeStyle = color;
    bounds.forEach((bound, at) => {
      if (!bound || bound[0] === null || bound[1] === null) return;
      const x = plot.valToPos(plot.data[0][at], "x", true);
      const [low, high] = bound.map((value) => plot.valToPos(value, "y", true));
      const half = 4 * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x, low);
      ctx.lineTo(x, high);
      for (const y of [low, high]) {
        ctx.moveTo(x - half, y);
        ctx.lineTo(x + half, y);
      }
      ctx.stroke();
    });
  });
  ctx.restore();
}

/** A line at 0, which margins are compared with. */
function zeroLine(plot) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = css("--line");
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(bbox.left, plot.valToPos(0, "y", true));
  ctx.lineTo(bbox.left + bbox.width, plot.valToPos(0, "y", true));
  ctx.stroke();
  ctx.restore();
}

/** How the legend marks series: as full as their points, with a border like their lines. */
function marksOf(styled) {
  const of = (index) => styled[index - 1] ?? {};
  return { width: 2, stroke: (_, index) => of(index).color,
    fill: (_, index) => (of(index).dash || of(index).isHollow ? "transparent" : of(index).color),
    dash: (_, index) => (of(index).isHollow ? "dotted" : of(index).dash ? "dashed" : "solid") };
}

/** The range of all values and bounds, with room at both ends. */
function rangeOf(series) {
  const found = series.flatMap(({ values, bounds }) => [...values, ...(bounds ?? []).flat()])
    .filter((value) => typeof value === "number" && Number.isFinite(value));
  if (!found.length) return [0, 1];
  const [low, high] = [Math.min(...found), Math.max(...found)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}

/**
 * Draw `series` ({label, values, bounds, dash, format}) over `x` into a node, and again when its
 * size or the theme changes. `onPick` gets the index of a clicked x value.
 */
export class Plot {
  constructor(node, label) {
    this.node = node;
    this.label = label;
    this.plot = null;
    this.drawn = null;
    new ResizeObserver(() => {
      if (this.plot && this.plot.width !== this.size().width) this.plot.setSize(this.size());
    }).observe(node);
    isDark.addEventListener("change", () => this.plot && this.paint());
  }

  size() {
    return { width: Math.max(this.node.clientWidth, 240), height: 300 };
  }

  /** What is drawn already stays, with the point that a reader looks at. */
  async draw(drawn) {
    if (JSON.stringify(drawn) === JSON.stringify(this.drawn)) return;
    this.drawn = drawn;
    try {
      if (uPlot === null) await load();
      if (this.drawn === drawn) this.paint(); // or else what came meanwhile is painted
    } catch {
      this.node.textContent = "The plot cannot be loaded. See the table for its values.";
    }
  }

  paint() {
    const { x, xLabel, xFormat = String, xStep, xZero, zero, series, onPick } = this.drawn;
    const styled = series.map((each, index) => ({ ...each, color: each.color ?? colour(each.hue ?? index) }));
    this.plot?.destroy();
    const first = xZero ? 0 : x[0];
    const room = x.at(-1) > first ? (x.at(-1) - first) * 0.04 : 0.5;
    this.plot = new uPlot({
      ...this.size(),
      scales: {
        x: { time: false, range: () => [first - room, x.at(-1) + room] },
        y: { range: () => rangeOf(zero ? [...styled, { values: [0] }] : styled) },
      },
      axes: [
        { ...axis(xLabel, (_, found) => found.map(xFormat)), size: 34, ...(xStep ? { incrs: [1, 2, 5, 10, 20] } : {}) },
        { ...axis(null, (_, found) => found.map((value) => number(value))), size: 62 }, // uPlot rounds to 3 decimals
      ],
      series: [
        { label: xLabel, value: (_, value) => (value === null ? "" : xFormat(value)) },
        ...styled.map(({ label, color, dash, isJoined = true, isHollow = false, format = String }) => ({
          label, stroke: color, width: 2, dash, spanGaps: true, ...(isJoined ? {} : { paths: () => null }),
          points: { show: true, size: isHollow ? 9 : 7, fill: isHollow ? css("--bg") : color },
          value: (_, value) => (value === null || value === undefined ? "" : format(value)),
        })),
      ],
      legend: { live: true, markers: marksOf(styled) },
      cursor: { drag: { x: false, y: false } },
      hooks: { draw: [(plot) => { if (zero) zeroLine(plot); bars(plot, styled); }] },
    }, [x, ...styled.map(({ values }) => values)], this.node);
    this.plot.ctx.canvas.setAttribute("role", "img");
    this.plot.ctx.canvas.setAttribute("aria-label", this.label);
    if (onPick) {
      this.plot.over.addEventListener("click", () => {
        if (this.plot.cursor.idx !== null) onPick(this.plot.cursor.idx);
      });
    }
  }
}
