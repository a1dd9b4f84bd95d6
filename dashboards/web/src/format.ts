import type { Num, When } from "./types";

export const ABSENT = "–";

/** A measured number with four significant digits; absent is a dash and never a zero, a NaN says so. */
export function number(value: Num | undefined): string {
  if (value === null || value === undefined) return ABSENT;
  if (value === "NaN") return "NaN";
  if (value === "Infinity") return "+Inf";
  if (value === "-Infinity") return "−Inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  if (size >= 1000) return value.toFixed(0);
  return value.toPrecision(4);
}

export function isNonFinite(value: Num | undefined): boolean {
  return typeof value === "string";
}

export function integer(value: number | null | undefined): string {
  return value === null || value === undefined ? ABSENT : value.toLocaleString("en-US");
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${integer(count)} ${count === 1 ? one : many}`;
}

/** A large number at a glance: 1.72 M. */
export function compact(value: number): string {
  return value.toLocaleString("en-US", { notation: "compact", minimumFractionDigits: 0, maximumFractionDigits: 2 }).replace(/([A-Z])$/, " $1");
}

/** A size: 3.4 GB. */
export function size(bytes: number): string {
  const step = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
  return `${(bytes / 1000 ** step).toFixed(step === 0 ? 0 : 1)} ${["B", "KB", "MB", "GB", "TB"][step]!}`;
}

/** Dollars: cents while they can be seen to move, whole dollars from a hundred on. */
export function dollars(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return ABSENT;
  const digits = value < 100 ? 2 : 0;
  return `$${value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

/** How long, in at most two units. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** A lag in the unit in which it has few digits. */
export function lag(seconds: number | null): string {
  if (seconds === null) return ABSENT;
  if (seconds < 0.9995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

/** UTC seconds of a time that is written as seconds or in ISO 8601; null where there is none. */
export function seconds(time: When): number | null {
  if (typeof time === "number") return Number.isFinite(time) ? time : null;
  if (typeof time !== "string") return null;
  const parsed = Date.parse(time);
  return Number.isNaN(parsed) ? null : parsed / 1000;
}

export function clock(time: number): string {
  return new Date(time * 1000).toLocaleTimeString("en-GB", { hour12: false });
}
