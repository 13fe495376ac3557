// Exchange a key for the cookie of a session, then go where the visitor wanted to.

import { post, Problem } from "./api.js";
import { byId } from "./dom.js";
import { act } from "./live.js";

/** A page of ours, whatever the address says. */
function next() {
  const wanted = new URL(new URLSearchParams(location.search).get("next") ?? "/ui", location.origin);
  const isOurs = wanted.origin === location.origin && /^\/ui(\/|$)/.test(wanted.pathname);
  return isOurs ? wanted.pathname + wanted.search : "/ui";
}

/** What is wrong with the key, in words for the one who typed it. */
function spoken(error) {
  if (!(error instanceof Problem) || error.status !== 401) return error;
  return new Problem(401, { title: "This key is unknown or has expired.", detail: "Check that you pasted the whole key, or request a new one." });
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  act(byId("submit"), async () => {
    const key = byId("key").value.trim();
    byId("key").value = "";
    await post("/session", { key }).catch((error) => { throw spoken(error); });
    location.replace(next());
  });
});
byId("key").focus();
