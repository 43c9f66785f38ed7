// Which moment of the source belongs to a moment of the result.

/** Where in its part the source is when the result is at `t`, and which way it goes.
 *
 * `length`: seconds of the part; `total`: of the result. */
export function sourceAt(t, length, total, mode) {
  if (!length) return { at: 0, rate: 0 };
  if (mode === "remap") return { at: total ? (t * length) / total : t, rate: total ? length / total : 1 };
  if (mode === "loop") return { at: t % length, rate: 1 };
  if (mode === "cut_off") return { at: Math.min(t, length), rate: t < length ? 1 : 0 };
  const turn = t % (2 * length);
  return turn < length ? { at: turn, rate: 1 } : { at: 2 * length - turn, rate: -1 };
}
