import { integer, plural } from "./format";
import type { FleetEvent, HealthEvent, JobsEvent } from "./types";

export type Level = "unknown" | "healthy" | "ticket" | "page";

export interface Verdict {
  level: Level;
  headline: string;
  line: string;
}

export interface Known {
  /** Seconds since the last event; null before the first. */
  silent: number | null;
  open: Record<string, number>;
  newest: string | null;
  fleet: FleetEvent | null;
  jobs: JobsEvent | null;
  health: HealthEvent | null;
}

/** After so many seconds without an event (there is one every second) the page says that it is stale. */
export const STALE_AFTER = 4;

/** The one thing that must be read from across the room. It says healthy only of what is seen to be. */
export function verdict(known: Known): Verdict {
  const { silent, open, fleet, jobs, health } = known;
  if (silent === null || health === null) return { level: "unknown", headline: "CONNECTING", line: "waiting for the first data" };
  const pages = open["page"] ?? 0;
  if (silent > STALE_AFTER) {
    const was = pages > 0 ? `${plural(pages, "page")} open when last seen` : "what is shown is old";
    return { level: "unknown", headline: "OFFLINE", line: was };
  }
  if (pages > 0) return { level: "page", headline: `${integer(pages)} ${pages === 1 ? "PAGE" : "PAGES"}`, line: known.newest ?? "" };
  if (health.bus !== "available") return { level: "ticket", headline: "BUS AWAY", line: "the telemetry bus cannot be read" };
  if (health.store !== "available") return { level: "ticket", headline: "STORE AWAY", line: "the incident store cannot be read" };
  if (health.watching === false) {
    return { level: "ticket", headline: "NOT WATCHING", line: "no detector ticks: detect is down or cannot write to the bus" };
  }
  const tickets = open["ticket"] ?? 0;
  if (tickets > 0) {
    return { level: "ticket", headline: `${integer(tickets)} ${tickets === 1 ? "TICKET" : "TICKETS"}`, line: known.newest ?? "" };
  }
  const gpus = fleet?.gpus ?? 0;
  if (gpus === 0 && (jobs?.count ?? 0) === 0) return { level: "unknown", headline: "NO DATA", line: "no GPU and no job has reported yet" };
  if ((fleet?.stale ?? 0) > 0) {
    return { level: "ticket", headline: "GPUS SILENT", line: `${integer(fleet!.stale)} of ${plural(gpus, "GPU")} went silent` };
  }
  if (health.watching !== true) return { level: "unknown", headline: "CONNECTING", line: "no tick of a detector has come yet" };
  return { level: "healthy", headline: "ALL HEALTHY", line: "no incident is open" };
}
