// The REST API as a page: routes, parameters, bodies and responses, from the service's description.

import { json } from "./api.js";
import { command } from "./command.js";
import { curl } from "./curl.js";
import { byId, el, fill, name, say, table } from "./dom.js";
import { begin } from "./live.js";
import { exampleOf, fieldsOf, nameOf, typeOf } from "./schema_words.js";

const RESPONSE = /^Successful Response ?/; // what FastAPI says where a route says nothing
let document_ = null;
let schemas = {};

/** Sentences with `code` in them, one paragraph for each of the text's. */
function prose(text) {
  const part = (words, index) => (index % 2 ? el("code", {}, words) : words);
  return text.replaceAll("``", "`").trim().split(/\n\s*\n/)
    .map((paragraph) => el("p", {}, paragraph.replaceAll("\n", " ").split("`").map(part)));
}

const type = (parts) => el("span", { class: "type" }, parts.map((part) =>
  (typeof part === "string" ? part : el("a", { href: `#${part.name}` }, part.name))));

/** Fields with their types and meanings: a list, as a table of them fits no phone. */
const fields = (rows) => el("dl", { class: "fields-of" }, rows.map(({ name: field, type: parts, isRequired, standard, description }) => el("div", {},
  el("dt", {}, name(field), el("span", { class: "sub" }, type(parts), isRequired ? [", ", el("strong", {}, "required")] : null,
    isRequired || [undefined, null].includes(standard) ? null : [", default ", el("code", {}, JSON.stringify(standard))])),
  el("dd", {}, prose(description)))));

function parametersOf(operation) {
  const rows = (operation.parameters ?? []).map(({ name: field, in: place, required, schema, description }) => ({
    name: place === "header" ? `${field} (header)` : field, type: typeOf(schema), isRequired: required,
    standard: schema.default, description: description ?? schema.description ?? "" }));
  return rows.length ? [el("h4", {}, "Parameters"), fields(rows)] : [];
}

function bodyOf(operation) {
  const [content] = Object.values(operation.requestBody?.content ?? {});
  if (!content) return [];
  const schema = schemas[nameOf(content.schema)] ?? content.schema;
  return [el("h4", {}, "Body"), fields(fieldsOf(schema))];
}

function exampleFor(method, path, operation) {
  const [content] = Object.values(operation.requestBody?.content ?? {});
  const filled = path.replace(/\{(\w+)\}/g, (_, parameter) => parameter.toUpperCase());
  const words = curl(method.toUpperCase(), filled, { requiresKey: Boolean(operation.security),
    body: content && exampleOf(content.schema, schemas) });
  return [el("h4", {}, "Example"), command(`Example of ${operation.operationId}`, words)];
}

function responsesOf({ responses }) {
  const columns = ["status", "content", "meaning"].map((title) => ({ title }));
  const rows = Object.entries(responses).sort(([one], [other]) => one.localeCompare(other)).map(([status, { description, content = {} }]) => [
    status,
    Object.entries(content).map(([kind, { schema }]) => el("div", {}, nameOf(schema) ? [type(typeOf(schema)), " "] : null, el("span", { class: "muted" }, kind))),
    description.replace(RESPONSE, "")]);
  return [el("h4", {}, "Responses"), table("Responses", columns, rows)];
}

/** A part that opens: its content is made when it is opened first, as there is much of it. */
function part(id, title, words, content) {
  const node = el("details", { id, ontoggle: () => {
    if (node.childElementCount === 1) node.append(el("div", { class: "content" }, content()));
  } }, el("summary", {}, title));
  node.words = words.toLowerCase();
  return node;
}

function route(path, method, operation) {
  const sentence = operation.summary[0] + operation.summary.slice(1).toLowerCase();
  const scopes = (operation.security ?? []).flatMap((each) => Object.values(each)).flat();
  return part(operation.operationId,
    [el("h3", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), " ", name(path)), el("span", { class: "muted" }, sentence)],
    `${method} ${path} ${JSON.stringify(operation)}`,
    () => [prose(operation.description ?? ""),
      scopes.length ? el("p", { class: "note" }, `Requires a key with one of these scopes: ${scopes.join(", ")}.`) : null,
      exampleFor(method, path, operation), parametersOf(operation), bodyOf(operation), responsesOf(operation)]);
}

function schemaPart([id, schema]) {
  return part(id, [el("h3", {}, name(id)), " "], `${id} ${JSON.stringify(schema)}`, () => [prose(schema.description ?? ""),
    schema.properties ? fields(fieldsOf(schema)) : el("p", {}, type(typeOf(schema)))]);
}

function sections() {
  const routes = Object.entries(document_.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => ({ tag: operation.tags[0], node: route(path, method, operation) })));
  const found = [...Map.groupBy(routes, ({ tag }) => tag)].map(([tag, each]) => [tag, each.map(({ node }) => node)]);
  const rest = Object.entries(schemas).sort(([one], [other]) => one.localeCompare(other)).map(schemaPart);
  return [...found, ["schemas", rest]].map(([title, nodes]) => el("section", {},
    el("h2", {}, title[0].toUpperCase() + title.slice(1)), nodes));
}

/** Show only what has the words. */
function find() {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  let number = 0;
  for (const section of byId("routes").children) {
    const parts = [...section.querySelectorAll("details")];
    for (const node of parts) node.hidden = !words.every((word) => node.words.includes(word));
    const left = parts.filter((node) => !node.hidden).length;
    section.hidden = left === 0;
    number += left;
  }
  byId("found").textContent = words.length ? `${number} found` : "";
}

/** Open what the address names. */
function open() {
  const node = location.hash && byId(decodeURIComponent(location.hash.slice(1)));
  if (!(node instanceof HTMLDetailsElement)) return;
  byId("find").value = "";
  find();
  node.open = true;
  node.firstElementChild.focus();
  node.scrollIntoView();
}

await begin(async () => {
  document_ = await json("/openapi.json");
  ({ schemas } = document_.components);
  const isOpen = !Object.values(document_.paths).some((operations) => Object.values(operations).some(({ security }) => security));
  byId("access").textContent = isOpen ? "" : "The examples read your API key from the environment: export SLEB_API_KEY=…";
  fill(byId("routes"), sections());
  byId("find").addEventListener("input", find);
  addEventListener("hashchange", open);
  open();
  say("The REST API documentation is loaded");
});
