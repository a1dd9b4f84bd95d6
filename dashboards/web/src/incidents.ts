import { byId, keyed, make, say } from "./dom";
import { ABSENT, clock, dollars, duration, integer, number, plural, seconds } from "./format";
import type { Delivery, Incident, IncidentsEvent, Num } from "./types";

const TIERS = ["page", "ticket", "log"];
/** Cards on the page; the number of all is told. */
const CARDS_MAX = 100;

/** The incidents that are known, and what they cost. */
export class Incidents {
  open: Record<string, number> = {};
  #held = new Map<string, Incident>();
  /** The server's clock when an incident last came, for costs that go on from there. */
  #heard = new Map<string, number>();

  take(event: IncidentsEvent): void {
    if (event.whole === true) this.#held.clear();
    for (const incident of event.incidents) {
      this.#held.set(incident.id, incident);
      this.#heard.set(incident.id, event.time);
    }
    this.open = event.open;
  }

  get(id: string): Incident | undefined {
    return this.#held.get(id);
  }

  /** Open ones first, the worst tier first, the newest first. */
  sorted(): Incident[] {
    return [...this.#held.values()].sort(
      (one, other) =>
        Number(one.status === "resolved") - Number(other.status === "resolved") ||
        (one.status === "resolved" ? 0 : TIERS.indexOf(one.tier) - TIERS.indexOf(other.tier)) ||
        (seconds(other.detected_time) ?? 0) - (seconds(one.detected_time) ?? 0),
    );
  }

  /** Dollars so far at `now`, the server's clock: a firing incident goes on costing. Null where nobody knows. */
  cost(incident: Incident, now: number): number | null {
    const soFar = finite(incident.cost?.usd_so_far ?? null);
    const perHour = finite(incident.cost?.usd_per_hour ?? null);
    if (incident.status === "resolved" || perHour === null) return soFar;
    const onset = seconds(incident.onset_time) ?? seconds(incident.detected_time);
    if (onset !== null) return (Math.max(0, now - onset) / 3600) * perHour;
    return soFar === null ? null : soFar + (Math.max(0, now - (this.#heard.get(incident.id) ?? now)) / 3600) * perHour;
  }

  /** What all open ones have cost and cost an hour; null if none of them says. */
  total(now: number): { soFar: number | null; perHour: number | null } {
    let soFar: number | null = null;
    let perHour: number | null = null;
    for (const incident of this.#held.values()) {
      if (incident.status === "resolved") continue;
      const [cost, rate] = [this.cost(incident, now), finite(incident.cost?.usd_per_hour ?? null)];
      if (cost !== null) soFar = (soFar ?? 0) + cost;
      if (rate !== null) perHour = (perHour ?? 0) + rate;
    }
    return { soFar, perHour };
  }

  render(now: number): void {
    const all = this.sorted();
    const shown = all.slice(0, CARDS_MAX);
    const cards = keyed(byId("incidents"), shown.map((one) => one.id), newCard);
    shown.forEach((incident, at) => this.#fill(cards[at]!, incident, now));
    const firing = all.filter((one) => one.status !== "resolved").length;
    const over = all.length > CARDS_MAX ? `, ${CARDS_MAX} shown` : "";
    say(byId("incidents-count"), all.length === 0 ? "" : `${integer(firing)} open, ${integer(all.length - firing)} resolved${over}`);
    byId("incidents-empty").hidden = all.length > 0;
  }

  #fill(card: HTMLElement, incident: Incident, now: number): void {
    card.dataset["tier"] = incident.tier;
    card.dataset["status"] = incident.status;
    const slot = (name: string): Element => card.querySelector(`[data-slot=${name}]`)!;
    (slot("link") as HTMLAnchorElement).href = `#/incidents/${encodeURIComponent(incident.id)}`;
    say(slot("tier"), incident.status === "resolved" ? `${incident.tier} · resolved` : incident.tier);
    say(slot("title"), plainTitle(incident));
    (slot("simulated") as HTMLElement).hidden = !incident.simulated;
    const onset = seconds(incident.onset_time) ?? seconds(incident.detected_time);
    say(slot("since"), onset === null ? ABSENT : incident.status === "resolved" ? `began ${clock(onset)}` : duration(now - onset));
    say(slot("where"), place(incident));
    (slot("parameter") as HTMLElement).hidden = incident.where.parameter === null;
    say(slot("parameter"), incident.where.parameter ?? "");
    say(slot("cost"), dollars(this.cost(incident, now)));
    const delivery = delivered(incident);
    const mark = slot("delivery") as HTMLElement;
    mark.dataset["state"] = delivery.state;
    say(mark, delivery.text);
  }
}

function newCard(): HTMLElement {
  const slot = (tag: "span" | "b" | "code", name: string, extra = ""): HTMLElement => make(tag, { "data-slot": name, class: `${name} ${extra}` });
  const link = make("a", { "data-slot": "link", class: "card-link" });
  link.append(
    make("div", { class: "card-top" }, slot("span", "tier", "chip"), make("span", { "data-slot": "simulated", class: "badge simulated" }, "SIMULATED"), make("span", { class: "grow" }), slot("span", "since", "numbers")),
    slot("b", "title"),
    make("div", { class: "card-where" }, slot("span", "where", "numbers"), slot("code", "parameter")),
    make("div", { class: "card-foot" }, slot("span", "delivery"), make("span", { class: "grow" }), slot("span", "cost", "numbers")),
  );
  return make("li", { class: "card" }, link);
}

/** The badge says that it is simulated; the title need not say it again. */
function plainTitle(incident: Incident): string {
  return incident.simulated ? incident.title.replace(/^\[simulated\] /, "") : incident.title;
}

function place(incident: Incident): string {
  const { rank, node, gpu } = incident.where;
  const step = incident.onset_step ?? incident.detected_step;
  const parts = [
    incident.job,
    step === null ? null : `step ${integer(step)}`,
    rank === null ? null : `rank ${rank}`,
    node === null ? null : gpu === null ? node : `${node} GPU ${gpu}`,
  ];
  return parts.filter((part) => part !== null).join(" · ") || ABSENT;
}

const SENT = new Set(["delivered", "sent", "taken", "done"]);
const FAILED = new Set(["dead", "dead_letter", "dead-letter", "failed", "refused"]);

/** Whether somebody has been told: the worst of the newest delivery to each receiver. */
function delivered(incident: Incident): { state: "sent" | "failed" | "waiting" | "none"; text: string } {
  const newest = new Map<string, Delivery>();
  for (const delivery of incident.deliveries) newest.set(delivery.receiver, delivery);
  const all = [...newest.values()];
  const failed = all.find((one) => FAILED.has(one.state));
  if (failed !== undefined) return { state: "failed", text: `refused by ${failed.receiver}` };
  const waiting = all.find((one) => !SENT.has(one.state));
  if (waiting !== undefined) {
    const tries = waiting.attempts > 0 ? `, ${plural(waiting.attempts, "try", "tries")}` : "";
    return { state: "waiting", text: `sending to ${waiting.receiver}${tries}` };
  }
  if (all.length === 0) return { state: "none", text: incident.tier === "log" ? "recorded only" : "nobody to tell" };
  return { state: "sent", text: `told ${all.map((one) => one.receiver).join(", ")}` };
}

let drawn: Incident | null = null;

/** The drawer: everything that is known of one incident. It is built anew only when the incident has changed. */
export function drawer(incident: Incident, cost: number | null, now: number): void {
  if (drawn !== incident) {
    build(byId<HTMLDialogElement>("drawer"), incident);
    drawn = incident;
  }
  const onset = seconds(incident.onset_time) ?? seconds(incident.detected_time);
  const ago = onset === null ? ABSENT : incident.status === "resolved" ? clock(onset) : `${clock(onset)}, ${duration(now - onset)} ago`;
  say(byId("drawer-began"), ago);
  say(byId("drawer-cost"), dollars(cost));
}

function build(box: HTMLDialogElement, incident: Incident): void {
  const close = make("button", { type: "button", class: "quiet close", "aria-label": "Close" }, "✕");
  close.addEventListener("click", () => box.close());
  const title = make("h2", { id: "drawer-title" }, plainTitle(incident));
  const chips = make("div", { class: "card-top" }, make("span", { class: "chip tier" }, incident.status === "resolved" ? `${incident.tier} · resolved` : incident.tier));
  if (incident.simulated) chips.append(make("span", { class: "badge simulated" }, "SIMULATED"));
  chips.append(make("span", { class: "grow" }), close);
  box.dataset["tier"] = incident.tier;
  box.dataset["status"] = incident.status;
  box.replaceChildren(
    chips,
    title,
    ...(incident.message ? [make("p", { class: "message" }, incident.message)] : []),
    facts([
      ["Job", incident.job],
      ["Attempt", incident.attempt],
      ["Onset step", integer(incident.onset_step)],
      ["Detected step", integer(incident.detected_step)],
      ["Rank", integer(incident.where.rank)],
      ["Parameter", incident.where.parameter],
      ["Node", incident.where.node],
      ["GPU", incident.where.gpu === null ? null : `${incident.where.gpu}${incident.where.uuid === null ? "" : ` (${incident.where.uuid})`}`],
      ["Began", null, "drawer-began"],
      ["Cost so far", null, "drawer-cost"],
      ["Cost an hour", dollars(finite(incident.cost?.usd_per_hour ?? null))],
      ["Ranks affected", integer(incident.ranks_affected)],
      ["Last good checkpoint", incident.last_good_checkpoint === null ? null : `step ${integer(incident.last_good_checkpoint.step)}, ${incident.last_good_checkpoint.path}`],
      ["Findings", integer(incident.findings)],
    ]),
    section("Likely causes", causes(incident)),
    section("Evidence", facts(Object.entries(incident.evidence).map(([key, value]) => [key, shown(value)]))),
    section("Deliveries", deliveries(incident)),
    ...(incident.blind.length > 0 ? [section("Nantucket cannot see", make("ul", {}, ...incident.blind.map((one) => make("li", {}, one))))] : []),
    links(incident),
  );
}

function section(title: string, content: Node): HTMLElement {
  return make("section", {}, make("h3", {}, title), content);
}

function facts(pairs: [name: string, value: string | null, id?: string][]): HTMLElement {
  if (pairs.length === 0) return make("p", { class: "muted" }, "none");
  return make("dl", { class: "facts" }, ...pairs.flatMap(([name, value, id]) => [
      make("dt", {}, name),
      make("dd", id === undefined ? { class: "numbers" } : { class: "numbers", id }, value ?? ABSENT),
    ]));
}

function causes(incident: Incident): HTMLElement {
  if (incident.likely_causes.length === 0) return make("p", { class: "muted" }, "none found");
  return make(
    "ol",
    { class: "causes" },
    ...incident.likely_causes.map((cause) => {
      const share = finite(cause.confidence);
      const meter = make("meter", { min: "0", max: "1", value: String(share ?? 0), "aria-label": "confidence" });
      const words = share === null ? ABSENT : `${Math.round(share * 100)} %`;
      return make("li", {}, make("b", {}, cause.cause), meter, make("span", { class: "numbers muted" }, words), make("p", {}, cause.evidence));
    }),
  );
}

function deliveries(incident: Incident): HTMLElement {
  if (incident.deliveries.length === 0) return make("p", { class: "muted" }, "none");
  return make(
    "ul",
    { class: "deliveries" },
    ...incident.deliveries.map((one) => {
      const state = SENT.has(one.state) ? "sent" : FAILED.has(one.state) ? "failed" : "waiting";
      const line = make("span", { class: "delivery", "data-state": state }, `${one.receiver}: ${one.transition}, ${one.state}, ${plural(one.attempts, "attempt")}`);
      return one.last_error === null ? make("li", {}, line) : make("li", {}, line, make("p", { class: "muted" }, one.last_error));
    }),
  );
}

/** Only links that lead to the web are made clickable. */
function links(incident: Incident): HTMLElement {
  const safe = Object.entries(incident.links).filter(([name, url]) => name !== "incident" && typeof url === "string" && /^https?:\/\//.test(url));
  return make("p", { class: "links" }, ...safe.map(([name, url]) => make("a", { href: url!, rel: "noopener noreferrer", target: "_blank" }, name)));
}

function shown(value: unknown): string {
  if (Number.isInteger(value)) return integer(value as number);
  if (typeof value === "number" || value === null) return number(value as Num);
  return typeof value === "string" ? value : JSON.stringify(value);
}

function finite(value: Num): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
