// Schemas of the description of the REST API in words: types with their limits, and examples.

const REFERENCE = "#/components/schemas/";
const BOUNDS = { minimum: "≥ ", exclusiveMinimum: "> ", maximum: "≤ ", exclusiveMaximum: "< ",
  minLength: "length ≥ ", maxLength: "length ≤ ", minItems: "items ≥ ", maxItems: "items ≤ ", pattern: "matches " };

export const nameOf = (schema) => schema?.$ref?.slice(REFERENCE.length);

/** The type as parts in a row: words, and `{name}` for each schema that has a section of its own. */
export function typeOf(schema) {
  if (nameOf(schema)) return [{ name: nameOf(schema) }];
  const kinds = schema.anyOf ?? (schema.properties ? null : schema.oneOf) ?? schema.allOf;
  if (kinds) return kinds.map(typeOf).reduce((all, kind) => [...all, " or ", ...kind]).concat(bounds(schema));
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  return [...plain(schema), ...bounds(schema)];
}

function plain({ type = "anything", items, additionalProperties: values }) {
  if (type === "array") return ["list of ", ...typeOf(items ?? {})];
  if (type === "object" && typeof values === "object") return ["object of ", ...typeOf(values)];
  return [type];
}

const bounds = (schema) => Object.entries(BOUNDS).filter(([key]) => key in schema).map(([key, words]) => `, ${words}${schema[key]}`);

/** Rows of a table of fields: `{name, type, isRequired, standard, description}`. */
export const fieldsOf = (schema) => Object.entries(schema.properties ?? {}).map(([name, field]) => ({
  name, type: typeOf(field), isRequired: schema.required?.includes(name) ?? false,
  standard: field.default, description: field.description ?? "",
}));

/** A body to start with: the example of the schema, or else its required fields. */
export function exampleOf(schema, schemas) {
  const found = schemas[nameOf(schema)] ?? schema;
  if (found.examples) return found.examples[0];
  return Object.fromEntries((found.required ?? []).map((name) => [name, valueOf(found.properties[name], schemas)]));
}

function valueOf(field, schemas) {
  const found = schemas[nameOf(field)] ?? field;
  const [kind] = found.anyOf ?? found.oneOf ?? [found];
  if ("const" in kind || kind.enum) return kind.const ?? kind.enum[0];
  if (kind.properties || kind.$ref) return exampleOf(kind, schemas);
  return { string: "…", integer: 1, number: 1, boolean: true, array: [], object: {} }[kind.type] ?? null;
}
