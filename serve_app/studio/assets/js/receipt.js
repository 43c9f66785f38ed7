// What a job used, in plain words.

import { el } from "./dom.js";
import { count, dollars, span } from "./words.js";

const STAGES = {
  download: "Fetching the files", validation: "Checking them", prepare: "Finding the face", inference: "Drawing the mouth",
  listen: "Reading the voice", compose: "Pasting and encoding", stitch: "Joining", upload: "Storing",
};

/** Return the parts of a receipt. `metrics`: of a job that has succeeded. */
export function receiptParts(metrics) {
  const { receipt } = metrics;
  const drawn = Object.entries(receipt.frames_by_gpu_class)
    .map(([gpu, frames]) => `${count(frames, "frame", "frames")} on ${gpu === "cpu" ? "a CPU" : gpu}`);
  const waited = Object.values(receipt.waiting_s).reduce((sum, seconds) => sum + seconds, 0);
  const sentences = [
    `The engine ${metrics.engine} drew ${drawn.join(" and ") || "no frame"}.`,
    `The video took ${span(receipt.wall_s)} from its start to its end.`,
    waited >= 0.1 ? `Its parts waited ${span(waited)} for each other and for a free machine, partly at the same time.` : "",
    receipt.usd === null ? "No price is set for this worker, so the cost is not known." : `It cost ${dollars(receipt.usd)}.`,
    receipt.avatar_blocks.cached ? "The face was known from an earlier video, which saved time." : "",
    receipt.retries.segments ? `${count(receipt.retries.segments, "part", "parts")} had to be made again.` : "",
  ];
  const rows = Object.entries(metrics.stage_times)
    .filter(([name, seconds]) => name in STAGES && seconds >= 0.05)
    .map(([name, seconds]) => el("tr", {}, el("th", { scope: "row", textContent: STAGES[name] }), el("td", { textContent: span(seconds) })));
  const table = el("table", {}, el("caption", { className: "unseen", textContent: "Seconds of work by step" }), el("tbody", {}, ...rows));
  return [el("p", { textContent: sentences.filter(Boolean).join(" ") }), table];
}
