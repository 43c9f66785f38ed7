// The job on the stage: its steps, its end, and what can be done with it.

import { follow } from "./api.js";
import { $, el, prose, say } from "./dom.js";
import { receiptParts } from "./receipt.js";
import { STATES, STEPS, count, span, stepOf } from "./words.js";

export class JobView {
  /** `onChange` gets each state of the job, `onFault` errors of following it. */
  constructor(api, { onChange, onFault, onAgain }) {
    Object.assign(this, { api, onChange, onFault });
    this.job = null;
    $("cancel").addEventListener("click", () => this.#act("DELETE", ""));
    $("again").addEventListener("click", () => onAgain(this.job));
    $("curl").addEventListener("click", () => this.#copy());
    $("phases").replaceChildren(...STEPS.map((step) => el("li", { textContent: step })));
  }

  /** Follow a job until it has ended, or another one is shown. `curl`: its text, or null. */
  async show(job, curl) {
    this.leave();
    this.stop = new AbortController();
    const { signal } = this.stop;
    this.curl = curl;
    this.spoken = null;
    this.#draw(job);
    if (isOver(job)) return;
    try {
      for await (const state of follow(this.api, job, signal)) {
        if (signal.aborted) return;
        this.#draw(state);
      }
    } catch (fault) {
      if (!signal.aborted) this.onFault(fault);
    }
  }

  leave() {
    this.stop?.abort();
    this.job = null;
    $("job").hidden = true;
  }

  async #act(method, path) {
    $("cancel").disabled = true;
    try {
      await this.api.call(method, `v1/avatar/jobs/${encodeURIComponent(this.job.id)}${path}`);
      $("job-line").textContent = "It is being cancelled …";
    } catch (fault) {
      if (fault.code !== "job_ended") this.onFault(fault);
    } finally {
      $("cancel").disabled = false;
    }
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.curl);
      $("curl").lastChild.textContent = "Copied";
      say("The commands were copied.");
      setTimeout(() => ($("curl").lastChild.textContent = "Copy as curl"), 2500);
    } catch {
      // A page without https may not use the clipboard.
      $("receipt-text").replaceChildren(el("pre", { textContent: this.curl, tabIndex: 0 }));
      $("receipt").hidden = false;
      $("receipt").open = true;
    }
  }

  #draw(job) {
    const before = this.job?.status;
    this.job = job;
    const { fraction, phase } = job.progress;
    const isLive = !isOver(job);
    $("job").hidden = false;
    $("job").dataset.status = job.status;
    $("job-title").textContent = titleOf(job);
    $("job-percent").textContent = isLive ? `${Math.floor(fraction * 100)} %` : "";
    $("job-bar").value = fraction;
    $("job-bar").hidden = $("phases").hidden = !isLive;
    drawSteps(stepOf(phase));
    $("job-line").textContent = lineOf(job);
    $("job-line").hidden = lineOf(job) === "";
    $("cancel").hidden = !isLive;
    $("again").hidden = !["failed", "cancelled"].includes(job.status);
    $("curl").hidden = !this.curl;
    $("download").hidden = !job.output_url;
    if (job.output_url) Object.assign($("download"), { href: job.output_url, download: `${job.id}.mp4` });
    $("warnings").hidden = job.warnings.length === 0;
    $("warnings").replaceChildren(...job.warnings.map((text) => el("li", {}, ...prose(text))));
    $("receipt").hidden = !job.metrics?.receipt;
    if (job.metrics?.receipt && before !== job.status) $("receipt-text").replaceChildren(...receiptParts(job.metrics));
    if (job.status !== this.spoken) say(titleOf(job));
    this.spoken = job.status;
    this.onChange(job, before);
  }
}

export const isOver = (job) => !["queued", "running"].includes(job.status);

function drawSteps(current) {
  [...$("phases").children].forEach((item, i) => {
    item.className = i < current ? "past" : "";
    if (i === current) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  });
}

function titleOf(job) {
  if (job.status === "succeeded") return "Your video is ready";
  if (job.status === "failed") return "The video could not be made";
  return job.status === "running" ? "Rendering your video" : STATES[job.status];
}

function lineOf(job) {
  const { queue_position: position, eta_s: eta, frames_done: done, frames_total: total } = job.progress;
  if (job.status === "queued") return position > 1 ? `${count(position - 1, "video is", "videos are")} before it.` : "It begins in a moment.";
  if (job.status === "failed") return "";
  if (job.status === "cancelled") return "Nothing is stored of it.";
  if (job.status === "succeeded") {
    const wall = job.metrics.receipt?.wall_s ?? job.metrics.total_time;
    return `${count(total, "frame", "frames")} in ${span(wall)}.`;
  }
  const left = eta === null || eta === undefined ? "" : eta < 1 ? "Almost done." : `About ${span(Math.ceil(eta))} left.`;
  return total ? `${done.toLocaleString("en")} of ${count(total, "frame", "frames")}. ${left}` : left;
}
