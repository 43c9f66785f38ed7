// Numbers and states in words.

/** A position in a video: 1:05. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds || 0));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A duration: 4.2 s, 38 s, 2 min 5 s, 1 h 4 min. */
export function span(seconds) {
  if (seconds < 9.95) return `${trimmed(seconds, 1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

export function bytes(n) {
  if (n < 1000) return `${n} bytes`;
  if (n < 1e6) return `${Math.round(n / 1e3)} kB`;
  return n < 1e9 ? `${trimmed(n / 1e6, 1)} MB` : `${trimmed(n / 1e9, 2)} GB`;
}

export function dollars(usd) {
  if (usd === 0) return "$0";
  if (usd < 0.0001) return "less than $0.0001";
  return `$${usd < 0.1 ? usd.toPrecision(2) : usd.toFixed(2)}`;
}

export const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** How long ago an instant was. */
export function ago(iso) {
  const seconds = Math.max(0, (Date.now() - new Date(iso)) / 1000);
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(iso).toLocaleDateString("en", { day: "numeric", month: "short" });
}

const trimmed = (number, digits) => String(Number(number.toFixed(digits)));

// What a job goes through, for its row of steps.
export const STEPS = ["Waiting", "Fetching", "Checking", "Drawing", "Finishing"];
const STEP_OF = {
  queued: 0, preparing: 0, downloading: 1, validating: 2, inferring: 3, encoding: 4, uploading: 4,
};

/** The step of a phase; all of them are past when the job has ended well. */
export const stepOf = (phase) => (phase === "completed" ? STEPS.length : STEP_OF[phase] ?? 0);

export const STATES = {
  queued: "Waiting", running: "Rendering", succeeded: "Finished", failed: "Failed", cancelled: "Cancelled",
};
