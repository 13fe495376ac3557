// Elements out of data. All data becomes text nodes: nothing here, or anywhere, parses markup.

import { shortName } from "./format.js";

const MAX_SHOWN_CHARS = 20000;

/** An element. `props` are attributes; `on*` are listeners; null and false are left out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/**
 * Replace the children of a node, and mark it as complete. What is drawn again as it was stays: a
 * reader may have marked a part of it, scrolled it, or have the focus in it. Else the focus moves
 * to what was drawn in place of the focused element.
 */
export function fill(node, ...children) {
  const next = children.flat(Infinity).filter((child) => child !== null && child !== undefined)
    .map((child) => (child instanceof Node ? child : document.createTextNode(child)));
  node.removeAttribute("aria-busy");
  if (isSame(node, next)) return;
  const { activeElement: active } = document;
  const focused = active !== node && node.contains(active) ? identity(active) : null;
  node.replaceChildren(...next);
  if (focused === null) return;
  (drawnAgain(focused, node) ?? node.querySelector("button") ?? node.querySelector("a") ?? byId("main")).focus();
}

const isSame = (node, next) => node.childNodes.length === next.length
  && next.every((child, index) => child.isEqualNode(node.childNodes[index]));

/** What an element is, also when it is drawn again: its key, or else its kind and its words. */
const identity = (node) => node.dataset.key ?? `${node.tagName} ${node.getAttribute("aria-label") ?? node.textContent}`;

const drawnAgain = (wanted, node = document.body) =>
  [...node.querySelectorAll("a, button, input, select, textarea, summary, [tabindex]")].find((each) => identity(each) === wanted);

/** Text from a model or a client, shown as it is; a huge one in part. */
export function text(value) {
  const shown = value.length > MAX_SHOWN_CHARS
    ? `${value.slice(0, MAX_SHOWN_CHARS)}… [${value.length - MAX_SHOWN_CHARS} more characters]`
    : value;
  return el("span", { class: "text", dir: "auto" }, shown);
}

const MAX_WHOLE_CHARS = 25; // of a name, such as the id of a job

/** A name, which is broken between its parts where it has to be. */
export const name = (value) => el("span", { class: value.length > MAX_WHOLE_CHARS ? "name" : "name short", dir: "auto" },
  value.split(/(?=[@+])/).map((part) => el("span", {}, part)));

/** A name with the end of its job's id alone, and the whole of it on hover. */
export const shortened = (value) => el("span", { title: value }, name(shortName(value)));

/**
 * A table that scrolls by itself; where it is narrow, each row becomes a list, and roles keep it a table.
 * Columns are `{title, num}`, rows are lists of cells, the first of which names the row.
 */
export function table(label, columns, rows) {
  const row = (cells) => el("tr", { role: "row" }, cells);
  const head = columns.map(({ title, num }) => el("th", { scope: "col", role: "columnheader", class: num && "num" }, title));
  const cellOf = (cell, index) => {
    const { title, num } = columns[index];
    const words = typeof title === "string" ? title : null;
    if (index === 0) return el("th", { scope: "row", role: "rowheader", "data-title": words }, cell);
    return el("td", { role: "cell", class: num && "num", "data-title": words }, el("div", {}, cell ?? "–"));
  };
  return el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label },
    el("table", { role: "table" }, el("thead", { role: "rowgroup" }, row(head)),
      el("tbody", { role: "rowgroup" }, rows.map((cells) => row(cells.map(cellOf))))));
}

/** A second line of a cell, in brackets; it breaks between its parts only. */
export const bracketed = (...parts) => el("span", { class: "sub" }, parts.filter(Boolean).map((part, index, { length }) =>
  [el("span", { class: "whole" }, `${index ? "" : "["}${part}${index === length - 1 ? "]" : ";"}`), " "]));

export const facts = (pairs) => el("dl", { class: "facts" },
  pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([title, value]) => [el("dt", {}, title), el("dd", {}, value)]));

/** Show an error and what to do about it, with a button that tries again, or clear it. */
export function alertOf(error, retry = null) {
  const node = byId("alert");
  if (error === null) return node.replaceChildren();
  node.replaceChildren(el("p", { class: "banner bad" },
    el("strong", {}, error.title ?? "Unexpected error in this page."), " ", error.message, " ",
    retry && el("button", { onclick: retry }, "Try again")));
  node.scrollIntoView({ block: "nearest" });
}

/** Tell a screen reader about a change that can only be seen. */
export function say(sentence) {
  byId("said").textContent = sentence;
}

/** Ask before something that cannot be undone; resolves to whether it was confirmed. */
export function confirmed(question, consequence, verb) {
  const opener = document.activeElement;
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": "question" },
      el("form", { method: "dialog" },
        el("h2", { id: "question" }, question),
        el("p", {}, consequence),
        el("div", { class: "row" },
          el("button", { value: "yes", class: "danger" }, verb),
          el("button", { value: "no", autofocus: true }, "Keep it"))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      // what was behind the dialog may have been drawn again
      (opener.isConnected ? opener : drawnAgain(identity(opener)) ?? byId("main")).focus();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
