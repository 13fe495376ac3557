// Who is signed in, on every page: shown beside the navigation, and what their scopes do not allow
// is hidden by the style sheet. Asking extends the session.

import { json, Problem, SIGN_IN, signIn } from "./api.js";
import { byId, el, fill } from "./dom.js";
import { act } from "./live.js";

const RENEW_EVERY_MS = 300000;

/** On a narrow screen the links are behind a button. */
function openMenu() {
  const isOpen = byId("menu").getAttribute("aria-expanded") === "true";
  byId("menu").setAttribute("aria-expanded", String(!isOpen));
}

/** Say that the key may not use this page, in place of what would be refused. */
function refuse(scopes, needs) {
  if (!needs || scopes.includes("admin") || scopes.includes(needs) || byId("refusal")) return;
  byId("main").classList.add("refused");
  byId("main").prepend(el("div", { id: "refusal" }, el("h1", {}, "Your key has no access to this page"),
    el("p", {}, `This page requires the scope ${needs}, and your key has ${scopes.join(" and ")}. The operator of this service can create another key.`),
    el("p", {}, el("a", { href: "/ui" }, "To the overview"))));
}

function show({ name, scopes }) {
  document.body.dataset.scopes = scopes.join(" ");
  refuse(scopes, byId("main").dataset.pageNeeds);
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

byId("menu")?.addEventListener("click", openMenu);
setInterval(refresh, RENEW_EVERY_MS);
refresh();
