// What this worker is and how busy it is, from /health.

import { $, el } from "./dom.js";
import { count } from "./words.js";

const EVERY_MS = 15_000;
const SOON_MS = 3000;
const STATUS = { ok: "Ready", starting: "Starting", stopping: "Stopping" };

export class Worker {
  constructor(api) {
    this.api = api;
    this.isBusy = false;
    document.addEventListener("visibilitychange", () => !document.hidden && this.refresh());
  }

  async refresh() {
    clearTimeout(this.timer);
    let wait = SOON_MS;
    try {
      // 503 is an answer too: it says that the worker starts or stops.
      const answer = await fetch(this.api.url("health"));
      this.#draw(await answer.json());
      if (answer.ok && !this.isBusy) wait = EVERY_MS;
    } catch {
      this.#draw({ status: "lost" });
    }
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.refresh(), wait);
  }

  #draw(health) {
    const isLost = !(health.status in STATUS);
    const pools = health.pools ?? [];
    const frames = Math.round(health.frames_waiting ?? 0) + pools.reduce((sum, pool) => sum + pool.frames_in_flight, 0);
    this.isBusy = frames > 0;
    $("worker-button").dataset.state = health.status === "ok" ? "ok" : isLost ? "bad" : "wait";
    $("worker-line").textContent = isLost ? "Not connected" : frames ? `Busy · ${count(frames, "frame", "frames")}` : STATUS[health.status];
    const facts = isLost
      ? [["State", "The worker does not answer. The page tries again every few seconds."]]
      : [
          ["State", STATUS[health.status]],
          ["Engine", [health.engine, health.model_version].filter(Boolean).join(" ")],
          ["Faces", health.landmarks],
          ["Device", [health.gpu_class, health.device].filter(Boolean).join(" · ")],
          ...pools.map((pool) => [`Pool ${pool.name}`, poolText(pool)]),
          ["Work waiting", frames ? count(frames, "frame", "frames") : "none"],
          ["Version", health.version],
        ];
    const rows = facts.filter(([, value]) => value);
    $("worker-facts").replaceChildren(...rows.map(([name, value]) =>
      el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
  }
}

function poolText(pool) {
  const running = `${count(pool.running, "replica runs", "replicas run")}`;
  const starting = pool.starting ? `, ${pool.starting} start` : "";
  const speed = pool.frames_per_s ? `, ${pool.frames_per_s.toFixed(pool.frames_per_s < 10 ? 1 : 0)} frames/s each` : "";
  return `${running}${starting}${speed}${pool.reason ? `. ${pool.reason}` : ""}`;
}
