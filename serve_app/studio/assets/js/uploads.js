// Sends a file to the worker in parts (the tus protocol), and goes on after an interruption.

import { Fault } from "./api.js";
import { pause } from "./dom.js";

const PART_BYTES = 8 * 1024 * 1024;
const TRIES = 6;
const TUS = { "Tus-Resumable": "1.0.0" };

/** Send a file. `onShare` gets the share that has arrived, 0 to 1. Return what the worker found.
 *
 * Throws a Fault, or the AbortError of `signal`. */
export async function upload(api, file, onShare, signal) {
  const headers = { ...TUS, "Upload-Length": file.size, "Upload-Metadata": `filename ${base64(file.name)}` };
  const made = await api.call("POST", "v1/uploads", { headers, signal });
  // A proxy may know this worker by another address, so only the last part of it is used.
  const path = `v1/uploads/${made.headers.get("Location").split("/").pop()}`;
  for (let offset = 0, failures = 0; offset < file.size; ) {
    try {
      offset = await sendPart(api, path, file, offset, onShare, signal);
      failures = 0;
    } catch (fault) {
      if (!(fault instanceof Fault) || !mayPass(fault) || ++failures >= TRIES) throw fault;
      await pause(400 * 2 ** failures);
      offset = await arrived(api, path, offset, signal);
    }
  }
  return api.json("GET", path, { signal });
}

const mayPass = (fault) => fault.status === 0 || fault.status === 409 || fault.retryable;

/** Return how many bytes the worker has; `before` if it cannot be reached. */
async function arrived(api, path, before, signal) {
  try {
    const answer = await api.call("HEAD", path, { headers: TUS, signal });
    return Number(answer.headers.get("Upload-Offset"));
  } catch (fault) {
    if (fault instanceof Fault && fault.status === 0) return before;
    throw fault;
  }
}

/** Send one part. `fetch` does not say how far it is, so this is the older way. */
function sendPart(api, path, file, offset, onShare, signal) {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const stop = () => request.abort();
    signal.addEventListener("abort", stop, { once: true });
    request.addEventListener("loadend", () => signal.removeEventListener("abort", stop));
    request.upload.addEventListener("progress", (event) => onShare((offset + event.loaded) / file.size));
    request.addEventListener("load", () => {
      if (request.status === 204) resolve(Number(request.getResponseHeader("Upload-Offset")));
      else reject(new Fault(request.status, readBody(request.responseText)));
    });
    request.addEventListener("error", () => reject(new Fault(0, LOST)));
    request.addEventListener("abort", () => reject(signal.reason));
    request.open("PATCH", api.url(path));
    const headers = { ...TUS, "Upload-Offset": offset, "Content-Type": "application/offset+octet-stream" };
    for (const [name, value] of Object.entries(api.headers(headers))) request.setRequestHeader(name, value);
    request.send(file.slice(offset, offset + PART_BYTES));
  });
}

const LOST = {
  error_message: "The connection was lost while the file was sent.",
  hint: "Check the connection, then choose the file again.",
  code: "unreachable",
  retryable: true,
};

function readBody(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function base64(text) {
  return btoa(String.fromCodePoint(...new TextEncoder().encode(text)));
}
