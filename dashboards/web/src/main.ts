import "uplot/dist/uPlot.min.css";
import "./style.css";
import { Curves, type Onset } from "./charts";
import { applyDelta, type Curve } from "./curve";
import { byId, choice, say } from "./dom";
import { compact, integer } from "./format";
import { Heatmap } from "./heatmap";
import { drawer, Incidents } from "./incidents";
import { renderJobs, sortedJobs } from "./jobs";
import { showSources } from "./sources";
import { type EventName, Stream } from "./stream";
import { showLink, showTiles, showVerdict } from "./strip";
import type { CurveEvent, FleetEvent, HealthEvent, HeatEvent, IncidentsEvent, JobDetail, JobsEvent } from "./types";
import { STALE_AFTER, verdict } from "./verdict";

const SPANS: Record<string, number | null> = { all: null, "500": 500, "100": 100 };

/** The server thins a curve at 4,096 points; a page that has twice as many asks for the thinned one. */
const POINTS_MAX = 8_192;

const heatmap = new Heatmap(() => stream.again());
const curves = new Curves();
const incidents = new Incidents();
let fleet: FleetEvent | null = null;
let jobs: JobsEvent | null = null;
let health: HealthEvent | null = null;
let curve: Curve | null = null;
let pinned: string | null = null;
let selected: string | null = null;
let asking: string | null = null;
let scale = localStorage.getItem("curve-scale") ?? "linear";
let span = localStorage.getItem("curve-span") ?? "all";
/** The server's clock less this page's, so that a wrong clock on the wall makes no wrong durations. */
let clockAhead = 0;
let shownAt = 0;

const stream = new Stream(() => `/api/v1/stream?heat=${heatmap.channel}`, onEvent, refreshLink);

function onEvent(name: EventName, data: unknown): void {
  if (name === "fleet") {
    const event = data as FleetEvent;
    fleet = event;
    heatmap.update(event);
  } else if (name === "heat") {
    heatmap.paint(data as HeatEvent);
  } else if (name === "jobs") {
    jobs = data as JobsEvent;
    choose();
  } else if (name === "curve") {
    takeCurve(data as CurveEvent);
  } else if (name === "incidents") {
    incidents.take(data as IncidentsEvent);
    moveTime();
    choose();
    showIncidents();
    showCurve();
  } else if (name === "health") {
    health = data as HealthEvent;
    clockAhead = health.time - Date.now() / 1000;
    if (shownAt === 0) moveTime();
  }
  refresh();
}

/** The server's time as the page shows it: moved once a second, so that all durations and costs on it agree. */
function now(): number {
  return shownAt;
}

/** Time goes on only as long as there is data: a page that is cut off must not go on counting. */
function moveTime(): void {
  const newest = (health?.time ?? 0) + STALE_AFTER;
  shownAt = Math.min(Date.now() / 1000 + clockAhead, newest);
}

/** The job that is looked at: the one that somebody has chosen, else the one with the newest open page, else the first. */
function choose(): void {
  const lines = jobs?.jobs ?? [];
  const known = (name: string | null): boolean => lines.some((job) => job.job === name);
  const paged = incidents.sorted().find((one) => one.status !== "resolved" && known(one.job));
  const first = known(selected) ? selected : (sortedJobs(lines, new Map())[0]?.job ?? null);
  const wanted = pinned !== null && known(pinned) ? pinned : (paged?.job ?? first);
  const line = lines.find((job) => job.job === wanted);
  if (wanted !== selected || (curve !== null && line !== undefined && line.attempt !== curve.attempt)) {
    selected = wanted;
    curve = null;
    void askForCurve();
  }
}

function takeCurve(event: CurveEvent): void {
  if (curve === null) return;
  if (!applyDelta(curve, event) || curve.points.step.length > POINTS_MAX) void askForCurve();
  showCurve();
}

async function askForCurve(): Promise<void> {
  const job = selected;
  if (job === null || asking === job) return;
  asking = job;
  try {
    const answer = await fetch(`/api/v1/jobs/${job.split("/").map(encodeURIComponent).join("/")}`);
    if (answer.ok && job === selected) {
      const detail = (await answer.json()) as JobDetail;
      curve = { job, attempt: detail.shown_attempt, version: detail.curve.version, points: detail.curve };
      showCurve();
    }
  } catch {
    // The connection is away: the next event that does not fit asks again.
  } finally {
    asking = null;
  }
}

function onsets(): Onset[] {
  return incidents
    .sorted()
    .filter((one) => one.job === selected && one.onset_step !== null && (curve === null || one.attempt === curve.attempt))
    .map((one) => ({ step: one.onset_step!, tier: one.tier }));
}

function showCurve(): void {
  curves.show(curve, onsets(), scale === "log", SPANS[span] ?? null);
}

function worstOfJobs(): Map<string, number> {
  const worst = new Map<string, number>();
  for (const one of incidents.sorted()) {
    const place = ["page", "ticket", "log"].indexOf(one.tier);
    if (one.job !== null && one.status !== "resolved") worst.set(one.job, Math.min(place, worst.get(one.job) ?? 9));
  }
  return worst;
}

function showIncidents(): void {
  incidents.render(now());
  const id = shownIncident();
  const found = id === null ? undefined : incidents.get(id);
  const box = byId<HTMLDialogElement>("drawer");
  if (found === undefined) {
    if (box.open) box.close();
    return;
  }
  drawer(found, incidents.cost(found, now()), now());
  if (!box.open) box.showModal();
}

function shownIncident(): string | null {
  const match = /^#\/incidents\/(.+)$/.exec(location.hash);
  return match === null ? null : decodeURIComponent(match[1]!);
}

function onHash(): void {
  const match = /^#\/jobs\/(.+)$/.exec(location.hash);
  if (match !== null) {
    const job = decodeURIComponent(match[1]!);
    pinned = job;
  }
  choose();
  showIncidents();
  refresh();
}

function refresh(): void {
  const open = incidents.open;
  const newest = incidents.sorted().find((one) => one.status !== "resolved" && one.tier !== "log");
  const silent = stream.lastEvent === null ? null : (performance.now() - stream.lastEvent) / 1000;
  showVerdict(verdict({ silent, open, newest: newest?.title ?? null, fleet, jobs, health }));
  showTiles(fleet, jobs, health, incidents.total(now()), (open["page"] ?? 0) + (open["ticket"] ?? 0));
  if (jobs !== null) renderJobs(jobs, worstOfJobs(), selected);
  if (health !== null) showSources(health, now());
  showJobLine();
  refreshLink();
}

function showJobLine(): void {
  const line = jobs?.jobs.find((job) => job.job === selected);
  say(byId("job-title"), selected ?? "No job");
  const pin = byId("job-pin");
  pin.hidden = selected === null || pinned !== selected;
  say(pin, "PINNED");
  const attempts = line === undefined || line.attempts === 1 ? "" : ` · attempt ${integer(line.attempts)}`;
  const tokens = line?.tokens_per_second == null ? "" : ` · ${compact(line.tokens_per_second)} tokens/s`;
  say(byId("job-line"), line === undefined ? "" : `step ${integer(line.step)}${attempts}${tokens}`);
}

function refreshLink(): void {
  const silent = stream.lastEvent === null ? null : (performance.now() - stream.lastEvent) / 1000;
  showLink(stream.state, silent, health === null ? null : health.time, silent !== null && silent > STALE_AFTER);
}

function controls(): void {
  const spans = [["all", "All steps"], ["500", "Last 500"], ["100", "Last 100"]].map(([value, title]) => ({ value: value!, title: title! }));
  choice(byId("curve-span"), spans, span, (value) => {
    span = value;
    localStorage.setItem("curve-span", value);
    controls();
    showCurve();
  });
  choice(byId("curve-scale"), [{ value: "linear", title: "Linear" }, { value: "log", title: "Log" }], scale, (value) => {
    scale = value;
    localStorage.setItem("curve-scale", value);
    controls();
    showCurve();
  });
}

const light = matchMedia("(prefers-color-scheme: light)");

function setTheme(theme: string): void {
  document.documentElement.dataset["theme"] = theme === "auto" ? (light.matches ? "light" : "dark") : theme;
  heatmap.restyle();
  curves.restyle();
  showCurve();
}

function switchTheme(): void {
  const next = document.documentElement.dataset["theme"] === "light" ? "dark" : "light";
  localStorage.setItem("theme", next);
  setTheme(next);
}

setTheme(localStorage.getItem("theme") ?? "auto");
light.addEventListener("change", () => setTheme(localStorage.getItem("theme") ?? "auto"));
byId("theme").addEventListener("click", switchTheme);
byId("job-pin").addEventListener("click", () => {
  pinned = null;
  history.replaceState(null, "", "#/");
  onHash();
});
byId<HTMLDialogElement>("drawer").addEventListener("close", () => {
  if (shownIncident() !== null) history.replaceState(null, "", "#/");
});
byId<HTMLDialogElement>("drawer").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) byId<HTMLDialogElement>("drawer").close();
});
addEventListener("hashchange", onHash);
addEventListener("keydown", (event) => {
  if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) switchTheme();
});
setInterval(() => {
  moveTime();
  refresh();
  showIncidents();
}, 1000);
controls();
onHash();
stream.open();
