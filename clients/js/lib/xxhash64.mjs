/** XXH64 with seed 0, as github.com/Cyan4973/xxHash specifies it. */

import { high, join, low, multiply } from "./u64.mjs";

const P1 = [0x9e3779b1, 0x85ebca87];
const P2 = [0xc2b2ae3d, 0x27d4eb4f];
const P3 = [0x165667b1, 0x9e3779f9];
const P4 = [0x85ebca77, 0xc2b2ae63];
const P5 = [0x27d4eb2f, 0x165667c5];

/** A 64-bit register; every operation changes it in place. */
class Register {
  constructor(h = 0, l = 0) {
    this.h = h;
    this.l = l;
  }

  add(h, l) {
    const sum = (this.l >>> 0) + (l >>> 0);
    this.l = sum >>> 0;
    this.h = (this.h + h + (sum > 0xffffffff ? 1 : 0)) >>> 0;
    return this;
  }

  xor(h, l) {
    this.h = (this.h ^ h) >>> 0;
    this.l = (this.l ^ l) >>> 0;
    return this;
  }

  times([h, l]) {
    multiply(this.h, this.l, h, l);
    this.h = high;
    this.l = low;
    return this;
  }

  /** Rotates left by 1 to 31 bits. */
  rotate(n) {
    const { h, l } = this;
    this.h = ((h << n) | (l >>> (32 - n))) >>> 0;
    this.l = ((l << n) | (h >>> (32 - n))) >>> 0;
    return this;
  }

  shiftXor(n) {
    const { h, l } = this;
    return n < 32 ? this.xor(h >>> n, (l >>> n) | (h << (32 - n))) : this.xor(0, n === 32 ? h : h >>> (n - 32));
  }
}

/** One lane's round; `lane` becomes rotl(lane + input * P2, 31) * P1. */
function round(lane, inputHigh, inputLow) {
  multiply(inputHigh, inputLow, P2[0], P2[1]);
  return lane.add(high, low).rotate(31).times(P1);
}

function mergeLane(hash, lane) {
  const mixed = round(new Register(), lane.h, lane.l);
  return hash.xor(mixed.h, mixed.l).times(P1).add(P4[0], P4[1]);
}

/** The four lanes over all whole stripes of 32 bytes, as one register. */
function stripes(view, end) {
  const first = new Register(...P1).add(...P2);
  const lanes = [first, new Register(...P2), new Register(), new Register(...negative(P1))];
  for (let at = 0; at < end; at += 32) {
    for (let i = 0; i < 4; i++) {
      round(lanes[i], view.getUint32(at + 8 * i + 4, true), view.getUint32(at + 8 * i, true));
    }
  }
  const hash = new Register();
  [1, 7, 12, 18].forEach((turn, i) => {
    const turned = new Register(lanes[i].h, lanes[i].l).rotate(turn);
    hash.add(turned.h, turned.l);
  });
  return lanes.reduce(mergeLane, hash);
}

function negative([h, l]) {
  return [(~h + (l === 0 ? 1 : 0)) >>> 0, -l >>> 0];
}

/** The hash of `bytes`, a BigInt. */
export function xxh64(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length;
  const end = length - (length % 32);
  const hash = end > 0 ? stripes(view, end) : new Register(...P5);
  hash.add(Math.floor(length / 2 ** 32), length >>> 0);
  let at = end;
  for (; at + 8 <= length; at += 8) {
    const word = round(new Register(), view.getUint32(at + 4, true), view.getUint32(at, true));
    hash.xor(word.h, word.l).rotate(27).times(P1).add(...P4);
  }
  if (at + 4 <= length) {
    multiply(0, view.getUint32(at, true), ...P1);
    hash.xor(high, low).rotate(23).times(P2).add(...P3);
    at += 4;
  }
  for (; at < length; at++) {
    multiply(0, bytes[at], ...P5);
    hash.xor(high, low).rotate(11).times(P1);
  }
  hash.shiftXor(33).times(P2).shiftXor(29).times(P3).shiftXor(32);
  return join(hash.h, hash.l);
}
