// Keeps an open page up to date. The server says that something has changed; the page then loads
// itself again, and what differs is changed in place, so that focus, scrolling and a video that
// plays stay as they are. Without this script, a page shows what was true when it was loaded.
"use strict";

const RETRY_MS = 5000;
const main = document.querySelector("main[data-live]");
const connection = document.getElementById("connection");
const announcer = document.getElementById("announcer");

let isLoading = false;
let isStale = false;

function say(state, text) {
  if (connection.dataset.state === state) return;
  // The first connection is no news to anybody.
  if (connection.dataset.state !== "off") announcer.textContent = text;
  connection.dataset.state = state;
  connection.querySelector("span").textContent = text;
}

// Not `.id`, which is the field named "id" if the element is a form with one.
function idOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("id") : null;
}

// Make `old` the same as `fresh`, and keep every element that is in both.
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || idOf(old) !== idOf(fresh)) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  // What somebody types, has opened or plays is not ours to change.
  if (old.hasAttribute("data-keep") && fresh.hasAttribute("data-keep")) return;
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  const known = new Map();
  for (const child of old.children) if (idOf(child)) known.set(idOf(child), child);
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const id = idOf(wanted);
    const match = id ? known.get(id) : at && !idOf(at) ? at : null;
    if (!match) {
      old.insertBefore(wanted, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else old.insertBefore(match, at);
    morph(match, wanted);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

async function load() {
  if (isLoading || document.hidden) {
    isStale = true;
    return;
  }
  isLoading = true;
  isStale = false;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
    if (answer.redirected) {
      location.reload(); // the session has ended
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (fresh.querySelector("video") && !main.querySelector("video")) {
      // Only a page that is loaded with a video may fetch it: its policy names the video's origin.
      sessionStorage.setItem("announce", fresh.dataset.said);
      location.reload();
      return;
    }
    const before = main.dataset.said;
    morph(main, document.adoptNode(fresh));
    document.title = page.title;
    if (main.dataset.said !== before) announcer.textContent = main.dataset.said;
    say("on", "Live");
  } catch {
    say("lost", "Not connected");
  } finally {
    isLoading = false;
    if (isStale && !document.hidden) load();
  }
}

function follow() {
  const events = new EventSource(main.dataset.live);
  events.addEventListener("changed", load);
  events.addEventListener("error", () => {
    say("lost", "Not connected");
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, RETRY_MS);
  });
  addEventListener("pagehide", () => events.close(), { once: true });
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && isStale) load();
});

if (main) {
  // The outcome of an action is shown once, and not again when the page is loaded again.
  const address = new URL(location.href);
  if (address.searchParams.has("said")) {
    address.searchParams.delete("said");
    history.replaceState(null, "", address);
    document.getElementById("outcome").focus();
  }
  announcer.textContent = sessionStorage.getItem("announce") ?? "";
  sessionStorage.removeItem("announce");
  follow();
}
