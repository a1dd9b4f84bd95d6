import { byId, keyed, make, say } from "./dom";
import { ABSENT, integer, isNonFinite, number } from "./format";
import type { JobLine, JobsEvent } from "./types";

const natural = new Intl.Collator("en", { numeric: true });

/** Jobs with an open incident first, then by name: a row stays where it is while its numbers move. */
export function sortedJobs(jobs: JobLine[], worst: Map<string, number>): JobLine[] {
  const place = (job: JobLine): number => worst.get(job.job) ?? 9;
  return [...jobs].sort((one, other) => place(one) - place(other) || natural.compare(one.job, other.job));
}

export function renderJobs(event: JobsEvent, worst: Map<string, number>, selected: string | null): void {
  const jobs = sortedJobs(event.jobs, worst);
  const rows = keyed(byId("jobs"), jobs.map((job) => job.job), newRow);
  jobs.forEach((job, at) => fill(rows[at]!, job, worst.get(job.job), job.job === selected));
  const running = event.jobs.filter((job) => job.state === "running").length;
  const over = event.count > event.jobs.length ? `, ${integer(event.jobs.length)} of ${integer(event.count)} shown` : "";
  say(byId("jobs-count"), event.count === 0 ? "" : `${integer(running)} running${over}`);
  byId("jobs-empty").hidden = event.count > 0;
}

function newRow(): HTMLTableRowElement {
  const name = make("th", { scope: "row" }, make("i", { class: "dot", "aria-hidden": "true" }), make("a", {}), make("small", {}));
  return make("tr", {}, name, ...Array.from({ length: 5 }, () => make("td", { class: "numbers" })));
}

function fill(row: HTMLTableRowElement, job: JobLine, worst: number | undefined, selected: boolean): void {
  row.dataset["state"] = worst === 0 ? "page" : worst === 1 ? "ticket" : job.state;
  row.toggleAttribute("aria-current", selected);
  const link = row.querySelector("a")!;
  link.href = `#/jobs/${encodeURIComponent(job.job)}`;
  say(link, job.job);
  link.title = job.job;
  say(row.querySelector("small")!, job.state === "running" ? "" : job.state);
  const ranks = job.world_size === null ? integer(job.ranks_seen) : `${integer(job.ranks_seen)} / ${integer(job.world_size)}`;
  const speed = job.steps_per_second === null ? ABSENT : job.steps_per_second.toFixed(2);
  [integer(job.step), number(job.loss), number(job.grad_norm), speed, ranks].forEach((text, at) => say(row.cells[at + 1]!, text));
  row.cells[2]!.classList.toggle("bad", isNonFinite(job.loss));
  row.cells[3]!.classList.toggle("bad", isNonFinite(job.grad_norm));
}
