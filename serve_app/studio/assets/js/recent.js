// The last videos of this worker, with what can be done with each.

import { $, el, icon } from "./dom.js";
import { isOver } from "./jobview.js";
import { STATES, ago } from "./words.js";

const SHOWN = 8;
const LIVE_MS = 3000;
const QUIET_MS = 20_000;

export class Recent {
  constructor(api, { onOpen, onFault, onRetried }) {
    Object.assign(this, { api, onOpen, onFault, onRetried });
    this.cards = new Map();
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
  }

  /** Read the list again, now and from time to time. */
  async refresh() {
    clearTimeout(this.timer);
    let isLive = false;
    try {
      const { jobs } = await this.api.json("GET", `v1/avatar/jobs?limit=${SHOWN}`, { asks: false });
      isLive = !jobs.every(isOver);
      this.#draw(jobs);
    } catch {
      // What was shown stays; the line about the worker says that it cannot be reached.
    }
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.refresh(), isLive ? LIVE_MS : QUIET_MS);
  }

  #draw(jobs) {
    if (jobs.length === 0) {
      this.cards.clear();
      $("cards").replaceChildren(el("li", { className: "none", textContent: "Your videos will be listed here." }));
      return;
    }
    const shown = new Map();
    for (const job of jobs) {
      const before = this.cards.get(job.id);
      const card = before ?? new Card(this);
      card.draw(job);
      shown.set(job.id, card);
    }
    this.cards = shown;
    const items = [...shown.values()].map((card) => card.item);
    // The elements stay where they are if nothing has moved, and so does the focus.
    const isSame = items.length === $("cards").children.length && items.every((item, i) => $("cards").children[i] === item);
    if (!isSame) $("cards").replaceChildren(...items);
  }

  async act(job, method, path, button) {
    button.disabled = true;
    try {
      const answer = await this.api.json(method, `v1/avatar/jobs/${encodeURIComponent(job.id)}${path}`);
      if (path === "/retry") this.onRetried(answer);
    } catch (fault) {
      this.onFault(fault);
    }
    button.disabled = false;
    await this.refresh();
  }
}

class Card {
  constructor(list) {
    this.list = list;
    this.poster = el("button", { type: "button", className: "poster" });
    this.poster.addEventListener("click", () => list.onOpen(this.job));
    this.name = el("p", { className: "card-name" });
    this.state = el("p", { className: "card-state" });
    this.why = el("p", { className: "card-why" });
    this.actions = el("div", { className: "card-actions" });
    const text = el("div", { className: "card-text" }, this.name, this.state, this.why);
    this.item = el("li", { className: "card" }, this.poster, text, this.actions);
  }

  draw(job) {
    const before = this.kind;
    this.job = job;
    // A job that begins to run keeps its button, which somebody may be pressing.
    this.kind = isOver(job) ? job.status : "live";
    this.item.dataset.job = job.id;
    const name = nameOf(job);
    this.name.textContent = this.name.title = name;
    this.poster.setAttribute("aria-label", `Open ${name}`);
    this.state.className = `card-state ${job.status}`;
    const percent = job.status === "running" ? ` · ${Math.floor(job.progress.fraction * 100)} %` : "";
    this.state.textContent = `${STATES[job.status]}${percent} · ${ago(job.created_at)}`;
    this.why.textContent = job.error ?? "";
    this.why.hidden = !job.error;
    if (this.kind !== before) this.#changed(job, name);
    if (this.bar) this.bar.value = job.progress.fraction;
  }

  #changed(job, name) {
    const isLive = !isOver(job);
    this.bar = isLive ? el("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` }) : null;
    if (job.output_url) {
      const video = el("video", { muted: true, preload: "metadata", playsInline: true, src: `${job.output_url}#t=0.4`, tabIndex: -1, "aria-hidden": "true" });
      this.poster.replaceChildren(video, el("span", { className: "glyph" }, icon("play")));
    } else {
      this.poster.replaceChildren(el("span", { className: "glyph" }, icon(isLive ? "film" : job.status === "failed" ? "alert" : "close")), ...(this.bar ? [this.bar] : []));
    }
    this.actions.replaceChildren(...this.#actionsOf(job, isLive, name));
  }

  #actionsOf(job, isLive, name) {
    if (isLive) return [this.#button("Cancel", `Cancel ${name}`, (button) => this.list.act(job, "DELETE", "", button))];
    if (job.output_url) {
      return [el("a", { className: "plain small", href: job.output_url, download: `${job.id}.mp4`, "aria-label": `Download ${name}`, textContent: "Download" })];
    }
    return [this.#button("Retry", `Retry ${name}`, (button) => this.list.act(job, "POST", "/retry", button))];
  }

  #button(text, label, act) {
    const button = el("button", { type: "button", className: "plain small", textContent: text, "aria-label": label });
    button.addEventListener("click", () => act(button));
    return button;
  }
}

/** What people recognise a job by: the names of its files if it was made here. */
export function nameOf(job) {
  const { video, voice } = job.metadata ?? {};
  return video && voice ? `${video} + ${voice}` : job.id;
}
