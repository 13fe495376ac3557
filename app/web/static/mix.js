// The texts of a mix in the form of a job: a row for each, with its weight.

import { el, fill } from "./dom.js";
import { Field } from "./schema_form.js";

export const MIX = "mix"; // among the choices of the text
const OWN = ["dataset", "path", "weight"]; // fields that each text has for itself
const FILE = "file"; // the data set that needs a path

/** Rows of texts. `onChange` is called when a row comes or goes; typing reaches the form anyway. */
export class Mix {
  constructor(schemas, onChange) {
    this.schemas = schemas;
    this.onChange = onChange;
    this.rows = [];
    this.list = el("div", {});
    this.button = el("button", { type: "button", "data-key": "add-text", onclick: () => this.add() }, "Add a text");
    this.node = el("div", { class: "wide" }, this.list, el("div", { class: "row" }, this.button));
  }

  /** The texts of a job, or of the rows that stay. `source` is what the job had, or null. */
  set(texts) {
    this.rows = texts.map(({ values, source = null }, at) => {
      const fields = new Map(OWN.map((field) => [field, new Field(`calibration.${at}.${field}`, this.schemas.SourceBody.properties, this.schemas)]));
      for (const [field, value] of Object.entries(values)) fields.get(field).value = value;
      return { fields, source };
    });
    const isOnly = this.rows.length === 1;
    fill(this.list, this.rows.map(({ fields }, at) => el("fieldset", {}, el("legend", {}, `text ${at + 1}`),
      el("div", { class: "fields" }, [...fields.values()].map(({ node }) => node)),
      isOnly ? null : el("div", { class: "row" }, el("button", { type: "button", onclick: () => this.remove(at) }, `Remove text ${at + 1}`)))));
    this.show();
  }

  /** A further text: the first that the mix does not have. */
  add() {
    const { enum: all } = this.field("calibration.0.dataset").schema;
    const dataset = all.find((each) => !this.rows.some(({ fields }) => fields.get("dataset").input.value === each)) ?? FILE;
    this.set([...this.texts(), { values: { dataset } }]);
    this.rows.at(-1).fields.get("dataset").input.focus();
    this.onChange();
  }

  remove(at) {
    this.set(this.texts().filter((_, index) => index !== at));
    this.button.focus();
    this.onChange();
  }

  /** The rows as `set` takes them. */
  texts() {
    return this.rows.map(({ fields, source }) => ({ source,
      values: Object.fromEntries(OWN.map((field) => [field, fields.get(field).input.value])) }));
  }

  /** A file has a path, and no other text. */
  show() {
    for (const { fields } of this.rows) fields.get("path").node.hidden = fields.get("dataset").input.value !== FILE;
  }

  /** All fields of all texts. */
  fields() {
    return this.rows.flatMap(({ fields }) => [...fields.values()]);
  }

  /** The field of an error, as `calibration.1.path`; that of the data set for a whole text. */
  field(path) {
    const [, at, field = "dataset"] = path.split(".");
    return this.rows[at]?.fields.get(field);
  }

  /** What is sent; `commonOf` gives the fields that all texts share, of what a text had before. */
  body(commonOf) {
    return this.rows.map(({ fields, source }) => {
      const dataset = fields.get("dataset").input.value;
      const path = dataset === FILE ? fields.get("path").value : undefined;
      return { dataset, path, weight: fields.get("weight").value, ...commonOf(source) };
    });
  }
}
