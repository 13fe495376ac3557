// Numbers and times in words, with their units.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const NONE = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function bytes(value) {
  if (!isNumber(value)) return NONE;
  const power = value > 0 ? Math.min(Math.floor(Math.log2(value) / 10), UNITS.length - 1) : 0;
  const scaled = value / 1024 ** power;
  return `${power === 0 || scaled >= 100 ? Math.round(scaled) : scaled.toFixed(1)} ${UNITS[power]}`;
}

/** Significant digits, as the tables of the docs have them. */
export function number(value, digits = 4) {
  if (!isNumber(value)) return NONE;
  if (Math.abs(value) >= 10 ** digits) return value.toExponential(2);
  return value.toPrecision(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** With four decimals, so that the numbers of a column are aligned. */
export const fixed = (value) => (isNumber(value) && Math.abs(value) < 1e4 ? value.toFixed(4) : number(value));

export const perplexity = (value) => (isNumber(value) && value < 1e5 ? value.toFixed(2)
  : number(value));

export const ratio = (value) => (isNumber(value) ? `${value < 1e3 ? value.toFixed(2)
  : number(value, 3)}×` : NONE);

/** An interval in words: "1.10–1.31", or nothing if it is not known. */
export const interval = (low, high) => (isNumber(low) && isNumber(high)
  ? `${ratio(low).slice(0, -1)}–${ratio(high).slice(0, -1)}` : "");

/** A duration. */
export function seconds(value) {
  if (!isNumber(value)) return NONE;
  if (value < 1) return `${number(value * 1000, 3)} ms`;
  if (value < 60) return `${number(value, 3)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
}

let moments = null; // made once, as that takes longer than to write a hundred moments

/** A moment, given in seconds since the epoch. */
export function moment(value) {
  moments ??= new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium" });
  return isNumber(value) ? moments.format(value * 1000) : NONE;
}

/** A name with the end of its job's id alone, which is long; the whole name belongs into a title. */
export const shortName = (found) => found.replace(/(^|@)prn-[0-9a-f]+?([0-9a-f]{6})(?![0-9a-f])/g, "$1…$2");

/** Numbers stay with their signs at the end of a line. */
export const unbroken = (text) => text.replace(/ (?=[×%])/g, "\u00a0");

export const count = (value, one, many = `${one}s`) => `${value} ${value === 1 ? one : many}`;
