import { describe, expect, test } from "vitest";
import { bit, decodeCells, FINITE, MISSING, NEGATIVE_INFINITY, NOT_A_NUMBER, Picture, POSITIVE_INFINITY, STALE } from "../src/codes";
import { applyDelta, type Curve, drawn, latest } from "../src/curve";
import { ABSENT, compact, dollars, duration, isNonFinite, lag, number, seconds } from "../src/format";
import { corner, heatLayout, under } from "../src/heat_layout";
import { shade } from "../src/ramp";
import { lossWords, regionLine } from "../src/sources";
import type { FleetEvent, HealthEvent, HeatEvent } from "../src/types";
import { type Known, verdict } from "../src/verdict";

function heat(codes: number[], more: Partial<HeatEvent> = {}): HeatEvent {
  return { metric: "power_watts", fold: "worst", revision: 1, bits: 8, from: 0, to: 100, codes: btoa(String.fromCharCode(...codes)), ...more };
}

describe("absent, zero and NaN", () => {
  test("are three different texts", () => {
    expect([null, 0, "NaN" as const].map(number)).toEqual([ABSENT, "0", "NaN"]);
  });

  test("are three different things on a curve", () => {
    const found = drawn([1, 2, 3, 4], [null, 0, "NaN", 5], false, null);
    expect(found.values).toEqual([null, 0, null, 5]);
    expect(found.marks).toEqual([{ step: 3, what: "NaN" }]);
  });

  test("are three different kinds of cell", () => {
    const codes = new Uint16Array([0, 65_000, 65_535, 65_534, 65_533, 65_532, 65_531]);
    const cells = decodeCells(codes, heat([], { bits: 16 }));
    expect([...cells.kinds]).toEqual([FINITE, FINITE, MISSING, NOT_A_NUMBER, POSITIVE_INFINITY, NEGATIVE_INFINITY, STALE]);
    expect([...decodeCells(new Uint8Array([0, 250, 255, 254, 253, 252, 251]), heat([])).kinds]).toEqual([...cells.kinds]);
    expect([...cells.values.slice(0, 2)]).toEqual([0, 100]);
    expect(cells.values[2]).toBeNaN();
  });

  test("the newest number may be a NaN, never an absent one", () => {
    expect(latest([1, "NaN", null])).toBe("NaN");
    expect(latest([null])).toBeNull();
    expect(isNonFinite(latest([0]))).toBe(false);
  });
});

describe("a curve", () => {
  const fresh = (): Curve => ({ job: "run", attempt: "a", version: 5, points: { step: [1, 3], loss: [1, 3], grad_norm: [1, 3] } });
  const event = (since: number, step: number[], attempt = "a") => ({
    since,
    version: since + step.length,
    curves: [{ job: "run", attempt, step, loss: step.map(() => "NaN" as const), grad_norm: step.map(() => null) }],
    left_out: [] as string[],
  });

  test("takes new, old and known steps in their places", () => {
    const curve = fresh();
    expect(applyDelta(curve, event(5, [4, 2, 3]))).toBe(true);
    expect(curve.points.step).toEqual([1, 2, 3, 4]);
    expect(curve.points.loss).toEqual([1, "NaN", "NaN", "NaN"]);
    expect(curve.version).toBe(8);
  });

  test("is asked for anew after a gap, another attempt, or when it was left out", () => {
    expect(applyDelta(fresh(), event(6, [4]))).toBe(false);
    expect(applyDelta(fresh(), event(5, [4], "b"))).toBe(false);
    expect(applyDelta(fresh(), { ...event(5, [4]), curves: [], left_out: ["run"] })).toBe(false);
  });

  test("ignores what it has already", () => {
    const curve = fresh();
    expect(applyDelta(curve, event(2, [9]))).toBe(true);
    expect(curve.points.step).toEqual([1, 3]);
  });

  test("draws nothing at or below zero on a logarithmic scale, and only the last steps when asked", () => {
    expect(drawn([1, 2, 3], [0, -1, 2], true, null).values).toEqual([null, null, 2]);
    expect(drawn([1, 2, 300], [1, 2, 3], false, 100).steps).toEqual([300]);
    expect(drawn([], [], false, 100).steps).toEqual([]);
  });
});

describe("the heatmap", () => {
  test.each([
    [1, 1],
    [1, 8],
    [3, 8],
    [64, 8],
    [512, 8],
    [1250, 1],
    [37_500, 1],
    [1, 1000],
  ])("fits %i nodes of %i cells into its box, and every cell is found under its own middle", (nodes, perNode) => {
    const [width, height] = [1200, 380];
    const layout = heatLayout(width, height, nodes, perNode);
    for (const node of [0, nodes >> 1, nodes - 1]) {
      for (const inNode of [0, perNode - 1]) {
        const { x, y } = corner(layout, node, inNode);
        expect(x).toBeGreaterThanOrEqual(0);
        expect(y).toBeGreaterThanOrEqual(0);
        expect(x + layout.cell).toBeLessThanOrEqual(width);
        expect(y + layout.cell).toBeLessThanOrEqual(height + 1);
        expect(under(layout, x + layout.cell / 2, y + layout.cell / 2)).toEqual({ node, inNode });
      }
    }
  });

  test("colours end at the ends, whichever end glares", () => {
    expect(shade(-5, 0, 100)).toBe(shade(0, 0, 100));
    expect(shade(0, 100, 0)).toBe(shade(100, 0, 100));
    expect(shade(1, 1, 1)).toBe(shade(0, 0, 1));
  });

  test("changes are put over the cells that were there, and only over those of the same picture", () => {
    const picture = new Picture();
    expect(picture.take(heat([1, 2, 3], { changed: btoa("\x02") }))).toBe(false);
    expect(picture.take(heat([1, 2, 3]))).toBe(true);
    expect(picture.take(heat([9, 8], { changed: btoa("\x05") }))).toBe(true);
    expect([...picture.codes]).toEqual([9, 2, 8]);
    expect(picture.take(heat([7], { changed: btoa("\x01"), metric: "temperature_celsius" }))).toBe(false);
    expect(picture.take(heat([0, 1, 44, 1], { bits: 16 }))).toBe(true);
    expect([...picture.codes]).toEqual([256, 300]);
  });

  test("bits are little endian, and none beyond the end is set", () => {
    expect([0, 1, 8, 99].map((at) => bit(new Uint8Array([0b10, 0b1]), at))).toEqual([false, true, true, false]);
  });
});

describe("the verdict", () => {
  const health: HealthEvent = {
    time: 0,
    bus: "available",
    store: "available",
    watching: true,
    lag_seconds: 0,
    newest_record: 0,
    frames: { seen: 0, outstanding: 0, lost: 0, missing: 0, duplicate: 0 },
    refused: {},
    losses: { outstanding: {}, lost: {}, duplicate: {} },
    regions: [],
    buses: [],
    spools: { nodes: 0, frames: 0, bytes: 0, oldest_seconds: null },
  };
  const fleet: FleetEvent = { time: 0, revision: 0, gpus: 8, reporting: 8, stale: 0, simulated: 0 };
  const known: Known = { silent: 0.2, open: {}, newest: null, fleet, jobs: null, health };

  test.each([
    ["healthy", "ALL HEALTHY", {}],
    ["page", "1 PAGE", { open: { page: 1, ticket: 4 } }],
    ["page", "2 PAGES", { open: { page: 2 } }],
    ["ticket", "1 TICKET", { open: { ticket: 1 } }],
    ["ticket", "NOT WATCHING", { health: { ...health, watching: false } }],
    ["ticket", "NOT WATCHING", { health: { ...health, watching: false }, open: { ticket: 1 } }],
    ["page", "1 PAGE", { health: { ...health, watching: false }, open: { page: 1 } }],
    ["unknown", "CONNECTING", { health: { ...health, watching: null } }],
    ["ticket", "BUS AWAY", { health: { ...health, bus: "unavailable" as const } }],
    ["ticket", "GPUS SILENT", { fleet: { ...fleet, stale: 3 } }],
    ["unknown", "NO DATA", { fleet: { ...fleet, gpus: 0 } }],
    ["unknown", "OFFLINE", { silent: 30, open: { page: 1 } }],
    ["unknown", "CONNECTING", { silent: null }],
  ])("is %s (%s) where that is what is known", (level, headline, changed) => {
    expect(verdict({ ...known, ...changed })).toMatchObject({ level, headline });
  });

  test("of the sources names the worst, and says nothing where nothing is missing", () => {
    expect(lossWords(health)).toBe("");
    const outstanding = { "n7/gpu": 12, "n3/gpu": 4, "n1/gpu": 2, "n2/gpu": 1, "(others)": 20 };
    const spools = { nodes: 5, frames: 12_000, bytes: 3_400_000_000, oldest_seconds: 720 };
    expect(lossWords({ ...health, losses: { outstanding, lost: { "n9/gpu": 1 }, duplicate: {} }, spools })).toBe(
      "Missing: n7/gpu 12, n3/gpu 4, n1/gpu 2, others 21 · Lost: n9/gpu 1 · Backlog: 5 nodes, 12,000 frames, 3.4 GB, oldest 12 min 00 s",
    );
  });

  test("of a region that is cut off has the time of its last frame", () => {
    const line = { region: "eu-1", gpus: 2048, reporting: 0, last_frame: 100, cut_off_since: null };
    expect(regionLine(line, 190)).toMatchObject({ bad: false });
    expect(regionLine({ ...line, cut_off_since: 100 }, 190)).toMatchObject({ bad: true });
    expect(regionLine({ ...line, cut_off_since: 100 }, 190).text).toContain("(1 min 30 s) · 2,048 GPUs");
  });
});

describe("texts", () => {
  test("of numbers keep four digits", () => {
    expect([0.00012, 0.5, 12.3456, 123456, -2e9].map(number)).toEqual(["1.20e−4", "0.5000", "12.35", "123456", "−2.00e9"]);
  });

  test("of money show what moves", () => {
    expect([0, 4.371, 600_000, null].map(dollars)).toEqual(["$0.00", "$4.37", "$600,000", ABSENT]);
  });

  test("of time", () => {
    expect([0, 61, 3661, 90_000].map(duration)).toEqual(["0 s", "1 min 01 s", "1 h 01 min", "1 d 1 h"]);
    expect([null, 0.0123, 2.34].map(lag)).toEqual([ABSENT, "12 ms", "2.3 s"]);
    expect([seconds("1970-01-01T00:00:07Z"), seconds(7.5), seconds("soon"), seconds(null)]).toEqual([7, 7.5, null, null]);
    expect(compact(1_720_000)).toBe("1.72 M");
  });
});
