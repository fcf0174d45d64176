/** The digest: a sum over all elements, so that k changed elements move it by k subtractions and k additions. */

import { high, join, low, multiply } from "./u64.mjs";

let mixedHigh = 0;
let mixedLow = 0;

/** mix(index * golden ratio + bits) into `mixedHigh` and `mixedLow`. */
function mix(index, bitsHigh, bitsLow) {
  multiply(Math.floor(index / 2 ** 32), index >>> 0, 0x9e3779b9, 0x7f4a7c15);
  const sum = low + (bitsLow >>> 0);
  let l = sum >>> 0;
  let h = (high + bitsHigh + (sum > 0xffffffff ? 1 : 0)) >>> 0;
  multiply(h ^ (h >>> 30), l ^ ((l >>> 30) | (h << 2)), 0xbf58476d, 0x1ce4e5b9);
  h = high;
  l = low;
  multiply(h ^ (h >>> 27), l ^ ((l >>> 27) | (h << 5)), 0x94d049bb, 0x133111eb);
  mixedHigh = (high ^ (high >>> 31)) >>> 0;
  mixedLow = (low ^ ((low >>> 31) | (high << 1))) >>> 0;
}

/** A running digest; `value` is a BigInt. */
export class Digest {
  #high = 0;
  #low = 0;

  get value() {
    return join(this.#high, this.#low);
  }

  add(index, bitsHigh, bitsLow) {
    mix(index, bitsHigh, bitsLow);
    const sum = this.#low + mixedLow;
    this.#low = sum >>> 0;
    this.#high = (this.#high + mixedHigh + (sum > 0xffffffff ? 1 : 0)) >>> 0;
  }

  subtract(index, bitsHigh, bitsLow) {
    mix(index, bitsHigh, bitsLow);
    const borrow = this.#low < mixedLow ? 1 : 0;
    this.#low = (this.#low - mixedLow) >>> 0;
    this.#high = (this.#high - mixedHigh - borrow) >>> 0;
  }
}

/** The bits of 64-bit elements as halves, low first; of narrower elements as they are. */
export function halvesOf(bits) {
  return bits instanceof BigUint64Array ? new Uint32Array(bits.buffer, bits.byteOffset, 2 * bits.length) : bits;
}

/** What all elements of the groups add up to: [{group, bits}]. */
export function digestOf(arrays) {
  const digest = new Digest();
  for (const { group, bits } of arrays) {
    const halves = halvesOf(bits);
    const wide = halves !== bits;
    for (let i = 0; i < group.size; i++) {
      if (wide) digest.add(group.offset + i, halves[2 * i + 1], halves[2 * i]);
      else digest.add(group.offset + i, 0, halves[i]);
    }
  }
  return digest.value;
}
