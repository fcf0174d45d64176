/**
 * Products of 64-bit numbers as two 32-bit halves: an order of magnitude faster than BigInt, which makes an object of
 * every number. `multiply` leaves its result in `high` and `low`, for the same reason.
 */

export let high = 0;
export let low = 0;

/** The low 64 bits of (ah, al) * (bh, bl), into `high` and `low`, both unsigned. */
export function multiply(ah, al, bh, bl) {
  const a0 = al & 0xffff;
  const a1 = al >>> 16;
  const b0 = bl & 0xffff;
  const b1 = bl >>> 16;
  const p00 = Math.imul(a0, b0) >>> 0;
  const middle = a0 * b1 + a1 * b0 + (p00 >>> 16); // below 2^34: exact
  low = ((middle << 16) | (p00 & 0xffff)) >>> 0;
  high = (Math.imul(a1, b1) + Math.floor(middle / 65536) + Math.imul(ah, bl) + Math.imul(al, bh)) >>> 0;
}

/** The two halves as one BigInt. */
export function join(h, l) {
  return (BigInt(h >>> 0) << 32n) | BigInt(l >>> 0);
}

/** Whether this machine stores numbers as the format does; all that run JavaScript today do. */
export const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
if (!LITTLE_ENDIAN) throw new Error("evergrad needs a little-endian machine");
