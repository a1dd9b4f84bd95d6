/** A colour-blind-safe ramp from blue to yellow whose lightness only grows; both ends stand out from both grounds. */
const STOPS: readonly (readonly [number, number, number])[] = [
  [27, 58, 120],
  [47, 84, 138],
  [84, 110, 140],
  [122, 134, 139],
  [164, 157, 122],
  [208, 184, 92],
  [255, 221, 64],
];

const SHADES = 64;

const TABLE: readonly string[] = Array.from({ length: SHADES }, (_, at) => {
  const place = (at / (SHADES - 1)) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[low]!.map((value, channel) => Math.round(value + (STOPS[low + 1]![channel]! - value) * (place - low)));
  return `rgb(${mixed.join(" ")})`;
});

/** The colour of `value` on the span `low` to `high`; beyond the ends it stays at the end. */
export function shade(value: number, low: number, high: number): string {
  const share = high > low ? (value - low) / (high - low) : 0;
  return TABLE[Math.max(0, Math.min(SHADES - 1, Math.round(share * (SHADES - 1))))]!;
}

export function gradient(): string {
  return `linear-gradient(90deg, ${STOPS.map((stop) => `rgb(${stop.join(" ")})`).join(", ")})`;
}
