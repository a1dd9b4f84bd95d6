import { byId, keyed, make, say } from "./dom";
import { clock, duration, integer, plural, size } from "./format";
import type { HealthEvent, RegionLine } from "./types";

/** Sources that are named on the line; the server knows more, and /metrics more still. */
const NAMED = 3;

/** The regions, and where frames are missing: both below the heatmap, and only where there is something to say. */
export function showSources(health: HealthEvent, now: number): void {
  const box = byId("regions");
  box.hidden = health.regions.length === 0 && health.buses.every((bus) => bus.away_since === null);
  const lines = [...health.regions.map((one) => regionLine(one, now)), ...busLines(health, now)];
  keyed(box, lines.map((line) => line.key), () => make("li")).forEach((item, at) => {
    say(item, lines[at]!.text);
    item.dataset["level"] = lines[at]!.bad ? "page" : "good";
  });
  const words = lossWords(health);
  byId("losses").hidden = words === "";
  say(byId("losses"), words);
}

interface Line {
  key: string;
  text: string;
  bad: boolean;
}

export function regionLine(one: RegionLine, now: number): Line {
  if (one.cut_off_since === null) {
    return { key: one.region, text: `${one.region} · ${plural(one.gpus, "GPU")} · last frame ${clock(one.last_frame)}`, bad: false };
  }
  const ago = duration(now - one.cut_off_since);
  return { key: one.region, text: `${one.region} · CUT OFF since ${clock(one.cut_off_since)} (${ago}) · ${plural(one.gpus, "GPU")}`, bad: true };
}

function busLines(health: HealthEvent, now: number): Line[] {
  const away = health.buses.filter((bus) => bus.away_since !== null);
  return away.map((bus) => ({ key: `bus ${bus.url}`, text: `bus ${bus.url} away for ${duration(now - bus.away_since!)}`, bad: true }));
}

/** Which sources miss frames, and what waits on nodes' disks; empty where nothing does. */
export function lossWords(health: HealthEvent): string {
  const { losses, spools } = health;
  const parts = (["outstanding", "lost"] as const).flatMap((kind) => {
    const sources = Object.entries(losses[kind]);
    if (sources.length === 0) return [];
    const named = sources.slice(0, NAMED).map(([source, count]) => `${source} ${integer(count)}`);
    const rest = sources.slice(NAMED).reduce((sum, [, count]) => sum + count, 0);
    return [`${kind === "lost" ? "Lost" : "Missing"}: ${named.join(", ")}${rest > 0 ? `, others ${integer(rest)}` : ""}`];
  });
  if (spools.nodes > 0) {
    const age = spools.oldest_seconds === null ? "" : `, oldest ${duration(spools.oldest_seconds)}`;
    parts.push(`Backlog: ${plural(spools.nodes, "node")}, ${plural(spools.frames, "frame")}, ${size(spools.bytes)}${age}`);
  }
  return parts.join(" · ");
}
