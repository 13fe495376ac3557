// Exchange a key for the cookie of a session, then go where the visitor wanted to.

import { post } from "./api.js";
import { byId } from "./dom.js";
import { act } from "./live.js";

/** A page of ours, whatever the address says. */
function next() {
  const wanted = new URL(new URLSearchParams(location.search).get("next") ?? "/ui", location.origin);
  const isOurs = wanted.origin === location.origin && /^\/ui(\/|$)/.test(wanted.pathname);
  return isOurs ? wanted.pathname + wanted.search : "/ui";
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  act(byId("submit"), async () => {
    const key = byId("key").value.trim();
    byId("key").value = "";
    await post("/session", { key });
    location.replace(next());
  });
});
byId("key").focus();
