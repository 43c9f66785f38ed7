// The key of this tab, and the dialog that asks for it.

import { $ } from "./dom.js";

const NAME = "lipsync-key";

export class Keys {
  /** `onKey` is called when a key was entered that no call had asked for. */
  constructor(onKey) {
    this.key = sessionStorage.getItem(NAME);
    this.asking = null;
    $("key-form").addEventListener("submit", (event) => this.#take(event));
    $("key-cancel").addEventListener("click", () => $("key-dialog").close());
    $("key-forget").addEventListener("click", () => this.#forget());
    $("key-button").addEventListener("click", async () => (await this.ask()) && onKey());
    this.#show();
  }

  /** Ask for a key. Return whether one was given. Calls at the same time share one dialog. */
  ask(fault) {
    if (fault?.code === "key_wrong") this.#store(null);
    this.asking ??= this.#open(fault).finally(() => (this.asking = null));
    return this.asking;
  }

  #open(fault) {
    const isWrong = fault?.code === "key_wrong";
    $("key-title").textContent = fault ? "This worker needs a key" : "The key of this worker";
    $("key-why").textContent = isWrong
      ? "The key was not accepted. Compare it with the one that the operator gave you."
      : "Enter the key that its operator gave you.";
    $("key-forget").hidden = !this.key;
    $("key-button").hidden = false;
    $("key").value = "";
    const before = this.key;
    $("key-dialog").showModal();
    return new Promise((resolve) => {
      const closed = () => resolve(Boolean(this.key) && this.key !== before);
      $("key-dialog").addEventListener("close", closed, { once: true });
    });
  }

  #take(event) {
    event.preventDefault();
    const given = $("key").value.trim();
    if (!given) return;
    this.#store(given);
    $("key-dialog").close();
  }

  #forget() {
    this.#store(null);
    location.reload();
  }

  /** A browser cannot send a key along a link, so there is none to the API then. */
  #show() {
    $("key-button").hidden = !this.key;
    $("api-link").hidden = Boolean(this.key);
  }

  #store(key) {
    this.key = key;
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
    this.#show();
  }
}
