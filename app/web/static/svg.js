// Shapes of SVG, round values for an axis, and what a line joins.

const SVG = "http://www.w3.org/2000/svg"; // a name, which nothing is fetched from

export function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Round values between two ends, about so many. */
export function ticks(low, high, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => (first + index) * step);
}

/** Depths that follow each other, which a line joins: between others are models that were not measured. */
export function runs(points) {
  const found = [];
  for (const point of points) {
    if (found.length && found.at(-1).at(-1).depth === point.depth - 1) found.at(-1).push(point);
    else found.push([point]);
  }
  return found.filter((run) => run.length > 1);
}
