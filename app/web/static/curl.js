// Requests as commands for a shell, which do the same as the page.

const quoted = (value) => `'${value.replaceAll("'", "'\\''")}'`;

/** A `curl` of the request. The key, where one is required, comes from the environment. */
export function curl(method, path, { body, requiresKey = false } = {}) {
  const parts = [`curl ${method === "GET" || (method === "POST" && body !== undefined) ? "" : `-X ${method} `}${location.origin}${path}`];
  if (requiresKey) parts.push('-H "authorization: Bearer $SLEB_API_KEY"');
  if (body !== undefined) parts.push("-H 'content-type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  return parts.join(" \\\n  ");
}

/** Whether callers of a route need a key, as its description in OpenAPI says. */
export const requiresKey = (document_, route, method) => Boolean(document_.paths[route]?.[method]?.security);
