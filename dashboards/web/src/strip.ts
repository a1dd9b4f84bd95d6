import { byId, say } from "./dom";
import { ABSENT, clock, dollars, integer, lag, plural } from "./format";
import type { LinkState } from "./stream";
import type { FleetEvent, HealthEvent, JobsEvent } from "./types";
import type { Level, Verdict } from "./verdict";

const ICONS: Record<Level, string> = {
  healthy: "M4 12.5l5 5L20 6.5",
  page: "M12 3v11M12 18.5v2",
  ticket: "M12 3v11M12 18.5v2",
  unknown: "M5 12h.5M12 12h.5M19 12h.5",
};

export function showVerdict(verdict: Verdict): void {
  const box = byId("state");
  if (box.dataset["level"] !== verdict.level || byId("state-icon").childElementCount === 0) {
    box.dataset["level"] = verdict.level;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", ICONS[verdict.level]);
    byId("state-icon").replaceChildren(path);
    const ink = getComputedStyle(box).getPropertyValue("--ink").trim();
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${ink}"/></svg>`;
    byId<HTMLLinkElement>("favicon").href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  }
  say(byId("state-headline"), verdict.headline);
  say(byId("state-line"), verdict.line);
  const title = `${verdict.headline} · Nantucket`;
  if (document.title !== title) document.title = title;
}

function tile(id: string, value: string, line: string, level: "" | "good" | "ticket" | "page" = ""): void {
  const box = byId(id);
  say(box.querySelector("b")!, value);
  say(box.querySelector("small")!, line);
  box.dataset["level"] = level;
}

export function showTiles(
  fleet: FleetEvent | null,
  jobs: JobsEvent | null,
  health: HealthEvent | null,
  cost: { soFar: number | null; perHour: number | null },
  open: number,
): void {
  if (fleet !== null) {
    const line = fleet.stale > 0 ? `${integer(fleet.stale)} stale of ${integer(fleet.gpus)}` : `of ${integer(fleet.gpus)}`;
    tile("tile-gpus", integer(fleet.reporting), line, fleet.stale > 0 ? "ticket" : "");
  }
  if (jobs !== null) {
    const running = jobs.jobs.filter((job) => job.state === "running");
    const rates = running.flatMap((job) => (job.steps_per_second === null ? [] : [job.steps_per_second]));
    const steps = rates.reduce((sum, rate) => sum + rate, 0);
    tile("tile-jobs", integer(running.length), rates.length === 0 ? ABSENT : `${steps.toFixed(1)} steps/s in all`);
  }
  if (health !== null) {
    const { missing, lost, seen } = health.frames;
    const line = lost > 0 ? `${integer(lost)} lost for good` : `of ${integer(seen + missing)}`;
    tile("tile-missing", integer(missing), line, missing > 0 ? "ticket" : "");
    const late = health.lag_seconds !== null && health.lag_seconds > 1;
    const refused = Object.values(health.refused).reduce((sum, count) => sum + count, 0);
    tile("tile-lag", lag(health.lag_seconds), refused > 0 ? `${plural(refused, "frame")} refused` : "bus to page", late ? "ticket" : "");
  }
  if (open === 0) tile("tile-cost", "$0", "nothing is burning");
  else tile("tile-cost", dollars(cost.soFar), cost.perHour === null ? "rate not known" : `${dollars(cost.perHour)} an hour`, cost.soFar === null ? "" : "page");
}

/** The connection, in words; `silent` is how long nothing has come. */
export function showLink(state: LinkState, silent: number | null, serverTime: number | null, stale: boolean): void {
  document.documentElement.dataset["link"] = stale ? "stale" : state.kind;
  say(byId("link-clock"), serverTime === null ? "--:--:--" : clock(serverTime));
  const ago = silent === null ? "" : ` · data ${Math.floor(silent)} s old`;
  const words = {
    connecting: `connecting${ago}`,
    live: stale ? `no data for ${Math.floor(silent ?? 0)} s` : "live",
    waiting: `retry in ${Math.max(0, Math.ceil(((state.kind === "waiting" ? state.until : 0) - performance.now()) / 1000))} s${ago}`,
  };
  say(byId("link-state"), words[state.kind]);
}
