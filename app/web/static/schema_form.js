// Controls for the fields of a request body, from the schema that the service publishes of it.

import { el } from "./dom.js";
import { WORDS } from "./field_words.js";

/** The schema of a field: its references followed, and null left out. */
function resolved(field, schemas) {
  const kinds = (field.anyOf ?? [field]).filter((kind) => kind.type !== "null");
  const [kind] = kinds;
  const target = kind.$ref ? schemas[kind.$ref.split("/").at(-1)] : kind;
  const { anyOf, $ref, ...rest } = field;
  return { ...target, ...rest, isOptional: Boolean(anyOf) };
}

function limits({ type, minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  return { type: "number", inputmode: type === "integer" ? "numeric" : "decimal",
    step: type === "integer" ? 1 : "any",
    min: minimum ?? exclusiveMinimum, max: maximum ?? exclusiveMaximum };
}

/** The names in a list with commas; undefined of none. */
function namesIn(text) {
  const names = text.split(",").map((name) => name.trim()).filter(Boolean);
  return names.length ? names : undefined;
}

function control(path, schema) {
  const props = { id: path, name: path, "aria-describedby": `${path}-hint ${path}-error` };
  if (schema.enum) {
    const none = schema.isOptional ? [el("option", { value: "" }, "not set")] : [];
    return el("select", props, none, schema.enum.map((value) =>
      el("option", { value, selected: value === schema.default }, value)));
  }
  if (schema.type === "boolean") return el("input", { ...props, type: "checkbox", checked: schema.default });
  if (schema.type === "string") return el("input", { ...props, type: "text", maxlength: schema.maxLength });
  if (schema.type === "array") return el("input", { ...props, type: "text" }); // names with commas
  return el("input", { ...props, ...limits(schema), value: schema.default });
}

/** One field with its label, its hint and a place for its error. `path` is as `calibration.seqlen`. */
export class Field {
  constructor(path, properties, schemas) {
    this.path = path;
    this.schema = resolved(properties[path.split(".").at(-1)], schemas);
    this.input = control(path, this.schema);
    this.hint = el("p", { class: "hint", id: `${path}-hint` }, this.schema.description ?? "");
    this.error = el("p", { class: "error", id: `${path}-error` });
    const key = path.split(".").at(-1);
    const label = el("label", { for: path }, WORDS[key] ?? key, " ", el("code", { class: "json" }, key));
    if (this.schema.type === "boolean") label.prepend(this.input);
    this.node = el("div", {}, label, this.schema.type === "boolean" ? null : this.input, this.hint, this.error);
  }

  /** Undefined if it has its default, which is left out of the body. */
  get value() {
    const { type } = this.schema;
    if (type === "boolean") return this.input.checked === this.schema.default ? undefined : this.input.checked;
    const given = this.input.value;
    if (type === "array") return namesIn(given);
    if (given === "" || given === String(this.schema.default)) return undefined;
    return ["integer", "number"].includes(type) ? Number(given) : given;
  }

  set value(value) {
    const { type } = this.schema;
    if (type === "boolean") this.input.checked = value;
    else this.input.value = value ?? "";
  }

  say(error) {
    this.error.textContent = error;
    this.input.setAttribute("aria-invalid", error !== "");
    if (error !== "") this.node.closest("details")?.setAttribute("open", "");
  }
}
