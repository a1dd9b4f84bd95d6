import type { CurveEvent, CurvePoints, Num } from "./types";

export interface Curve {
  job: string;
  attempt: string;
  /** Up to which of the stream's versions this copy is whole. */
  version: number;
  points: CurvePoints;
}

/** Sets the points of `fresh`, by step; steps stay ascending. */
export function upsert(points: CurvePoints, fresh: CurvePoints): void {
  fresh.step.forEach((step, at) => {
    const place = placeOf(points.step, step);
    const known = points.step[place] === step;
    points.step.splice(place, known ? 1 : 0, step);
    points.loss.splice(place, known ? 1 : 0, fresh.loss[at] ?? null);
    points.grad_norm.splice(place, known ? 1 : 0, fresh.grad_norm[at] ?? null);
  });
}

function placeOf(steps: number[], step: number): number {
  let low = 0;
  let high = steps.length;
  if (high > 0 && steps[high - 1]! < step) return high;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle]! < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Brings a curve up to an event. False if the copy is too old, or of another attempt: it must be asked for anew. */
export function applyDelta(curve: Curve, event: CurveEvent): boolean {
  if (event.version <= curve.version) return true;
  if (event.since > curve.version || event.left_out.includes(curve.job)) return false;
  const fresh = event.curves.find((one) => one.job === curve.job);
  if (fresh !== undefined) {
    if (fresh.attempt !== curve.attempt) return false;
    upsert(curve.points, fresh);
  }
  curve.version = event.version;
  return true;
}

export interface Drawn {
  steps: number[];
  /** Null where nothing can be drawn: absent, non-finite, or not above zero on a logarithmic scale. */
  values: (number | null)[];
  /** Steps at which the number was there but not finite, with what it was. */
  marks: { step: number; what: string }[];
}

/** Takes finite, absent and non-finite apart: a NaN is a mark, an absent value a gap, a zero a zero. */
export function drawn(steps: number[], numbers: Num[], logarithmic: boolean, span: number | null): Drawn {
  const newest = steps.at(-1);
  const start = span === null || newest === undefined ? 0 : placeOf(steps, newest - span);
  const marks: Drawn["marks"] = [];
  const values = numbers.slice(start).map((value, at) => {
    if (typeof value === "string") {
      marks.push({ step: steps[start + at]!, what: value });
      return null;
    }
    return value !== null && logarithmic && value <= 0 ? null : value;
  });
  return { steps: steps.slice(start), values, marks };
}

/** The newest number that is not absent. */
export function latest(numbers: Num[]): Num {
  for (let at = numbers.length - 1; at >= 0; at--) if (numbers[at] !== null) return numbers[at]!;
  return null;
}
