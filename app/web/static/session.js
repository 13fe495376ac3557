// Who is signed in, on every page: shown beside the navigation, and what their scopes do not allow
// is hidden by the style sheet. Asking extends the session.

import { json, Problem, SIGN_IN, signIn } from "./api.js";
import { byId, el, fill } from "./dom.js";
import { act } from "./live.js";

const RENEW_EVERY_MS = 300000;

function show({ name, scopes }) {
  document.body.dataset.scopes = scopes.join(" ");
  fill(byId("session"), el("span", { class: "muted" }, `${name} (${scopes.join(", ")})`), " ",
    el("button", { onclick: (event) => act(event.target, async () => {
      await json("/session", { method: "DELETE" });
      location.assign(SIGN_IN);
    }) }, "Sign out"));
}

async function refresh() {
  try {
    const session = await json("/session");
    if (session.name !== null) show(session);
    else if (session.requires_key && location.pathname !== SIGN_IN) signIn();
  } catch (error) {
    if (!(error instanceof Problem)) throw error; // the page itself says that the service is gone
  }
}

setInterval(refresh, RENEW_EVERY_MS);
refresh();
