/** A colour-blind-safe ramp from calm blue to glaring yellow; its lightness only grows, and both ends show on both grounds. */
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

/** Whether dark writing is read better than light on the colour of `value`. */
export function isLight(value: number, calm: number, glaring: number): boolean {
  return glaring !== calm && (value - calm) / (glaring - calm) > 0.45;
}

/** The colour of `value` on the span from `calm` to `glaring`, either of which may be the larger; it ends at the ends. */
export function shade(value: number, calm: number, glaring: number): string {
  const share = glaring === calm ? 0 : (value - calm) / (glaring - calm);
  return TABLE[Math.max(0, Math.min(SHADES - 1, Math.round(share * (SHADES - 1))))]!;
}

export function gradient(calmLeft: boolean): string {
  return `linear-gradient(${calmLeft ? 90 : 270}deg, ${STOPS.map((stop) => `rgb(${stop.join(" ")})`).join(", ")})`;
}
