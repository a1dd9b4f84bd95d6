import type { HeatEvent } from "./types";

/** What a cell holds: a finite value, or why there is none. */
export const FINITE = 0;
export const MISSING = 1;
export const NOT_A_NUMBER = 2;
export const POSITIVE_INFINITY = 3;
export const NEGATIVE_INFINITY = 4;

export const STALE = 5;

/** Codes up to the top are values; the five at the very end say, from the last one down, what kind of none it is. */
const TOPS = { 8: 250, 16: 65_000 } as const;
const ENDS = { 8: 255, 16: 65_535 } as const;
const KINDS = [MISSING, NOT_A_NUMBER, POSITIVE_INFINITY, NEGATIVE_INFINITY, STALE] as const;

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

/** The codes of one channel as they stand: what has changed is put over what was there. */
export class Picture {
  codes: Uint8Array | Uint16Array = new Uint8Array();
  #of = "";

  /** Take an event; false if it is about changes of a picture that is not this one. */
  take(sent: HeatEvent): boolean {
    const codes = codesOf(sent);
    const of = `${sent.metric} ${sent.fold} ${sent.revision} ${sent.bits}`;
    if (sent.changed === undefined) {
      this.codes = codes;
      this.#of = of;
      return true;
    }
    if (of !== this.#of) return false;
    const changed = bytesOf(sent.changed);
    let next = 0;
    for (let at = 0; at < this.codes.length; at++) if (bit(changed, at)) this.codes[at] = codes[next++]!;
    return true;
  }
}

function codesOf(sent: HeatEvent): Uint8Array | Uint16Array {
  const bytes = bytesOf(sent.codes);
  if (sent.bits === 8) return bytes;
  return Uint16Array.from({ length: bytes.length >> 1 }, (_, at) => bytes[2 * at]! | (bytes[2 * at + 1]! << 8));
}

/** Codes back to values; the topmost codes stand for what no number can say. */
export function decodeCells(codes: Uint8Array | Uint16Array, sent: HeatEvent): Cells {
  const [top, end] = [TOPS[sent.bits], ENDS[sent.bits]];
  const values = new Float64Array(codes.length).fill(Number.NaN);
  const kinds = new Uint8Array(codes.length);
  const scale = (sent.to - sent.from) / top;
  for (let at = 0; at < codes.length; at++) {
    const code = codes[at]!;
    if (code <= top) values[at] = sent.from + code * scale;
    else kinds[at] = KINDS[end - code] ?? MISSING;
  }
  return { values, kinds };
}

/** Little-endian bits, one a cell. */
export function bit(bytes: Uint8Array, at: number): boolean {
  return ((bytes[at >> 3] ?? 0) & (1 << (at & 7))) !== 0;
}
