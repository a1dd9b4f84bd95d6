import type { Quantised } from "./types";

/** What a cell holds: a finite value, or why there is none. */
export const FINITE = 0;
export const MISSING = 1;
export const NOT_A_NUMBER = 2;
export const POSITIVE_INFINITY = 3;
export const NEGATIVE_INFINITY = 4;

const CODE_TOP = 65_000;

export interface Cells {
  values: Float64Array;
  kinds: Uint8Array;
}

export function bytesOf(base64: string): Uint8Array {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

/** Little-endian uint16 codes back to values; the topmost codes stand for what no number can say. */
export function decodeCells(sent: Quantised): Cells {
  const bytes = bytesOf(sent.codes);
  const count = bytes.length >> 1;
  const values = new Float64Array(count).fill(Number.NaN);
  const kinds = new Uint8Array(count);
  const scale = (sent.to - sent.from) / CODE_TOP;
  for (let at = 0; at < count; at++) {
    const code = bytes[2 * at]! | (bytes[2 * at + 1]! << 8);
    if (code <= CODE_TOP) values[at] = sent.from + code * scale;
    else kinds[at] = kindOf(code);
  }
  return { values, kinds };
}

function kindOf(code: number): number {
  if (code === 65_534) return NOT_A_NUMBER;
  if (code === 65_533) return POSITIVE_INFINITY;
  if (code === 65_532) return NEGATIVE_INFINITY;
  return MISSING;
}

/** Little-endian bits, one a cell. */
export function bit(bytes: Uint8Array, at: number): boolean {
  return ((bytes[at >> 3] ?? 0) & (1 << (at & 7))) !== 0;
}
