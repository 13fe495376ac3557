// Elements out of data. All data becomes text nodes: nothing here, or anywhere, parses markup.

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

/** Replace the children of a node, keep the focus, and mark it as complete. */
export function fill(node, ...children) {
  const key = node.contains(document.activeElement) && document.activeElement.dataset.key;
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  node.removeAttribute("aria-busy");
  if (key) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** Text from a model or a client, shown as it is; a huge one in part. */
export function text(value) {
  const shown = value.length > MAX_SHOWN_CHARS
    ? `${value.slice(0, MAX_SHOWN_CHARS)}… [${value.length - MAX_SHOWN_CHARS} more characters]`
    : value;
  return el("span", { class: "text", dir: "auto" }, shown);
}

export const name = (value) => el("span", { class: "name", dir: "auto" }, value);

/** A table that scrolls by itself. Columns are `{title, num}`, rows are lists of cells. */
export function table(label, columns, rows) {
  const head = columns.map(({ title, num }) =>
    el("th", { scope: "col", class: num && "num" }, title));
  const body = rows.map((cells) => el("tr", {}, cells.map((cell, index) => {
    const isHead = index === 0;
    const props = { class: columns[index].num && "num", scope: isHead && "row" };
    return el(isHead ? "th" : "td", props, cell ?? "–");
  })));
  return el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

export const facts = (pairs) => el("dl", { class: "facts" },
  pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([title, value]) => [el("dt", {}, title), el("dd", {}, value)]));

/** Show an error and what to do about it, or clear it. */
export function alertOf(error) {
  const node = byId("alert");
  if (error === null) return node.replaceChildren();
  node.replaceChildren(el("p", { class: "banner bad" },
    el("strong", {}, error.title ?? "The page has a defect."), " ", error.message));
  node.scrollIntoView({ block: "nearest" });
}

/** Tell a screen reader about a change that can only be seen. */
export function say(sentence) {
  byId("said").textContent = sentence;
}

/** Ask before something that cannot be undone; resolves to whether it was confirmed. */
export function confirmed(question, consequence, verb) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": "question" },
      el("form", { method: "dialog" },
        el("h2", { id: "question" }, question),
        el("p", {}, consequence),
        el("div", { class: "row" },
          el("button", { value: "yes", class: "danger" }, verb),
          el("button", { value: "no", autofocus: true }, "Keep it"))));
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
