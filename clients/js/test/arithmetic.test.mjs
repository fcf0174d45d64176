/** The arithmetic of halves against BigInt and against node's own hashes. */

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";

import { Digest, digestOf } from "../lib/digest.mjs";
import { hex } from "../lib/hex.mjs";
import { sha256 } from "../lib/sha256.mjs";
import { high, join, low, multiply } from "../lib/u64.mjs";
import { xxh64 } from "../lib/xxhash64.mjs";

const EDGES = [0n, 1n, 0xffffn, 0x10000n, 0xffffffffn, 0x100000000n, 0x8000000000000000n, 0xffffffffffffffffn];
const wrap = (x) => BigInt.asUintN(64, x);

function mix(x) {
  let y = wrap(x);
  y = wrap((y ^ (y >> 30n)) * 0xbf58476d1ce4e5b9n);
  y = wrap((y ^ (y >> 27n)) * 0x94d049bb133111ebn);
  return y ^ (y >> 31n);
}

test("products are those of 64-bit integers", () => {
  const numbers = [...EDGES, ...new BigUint64Array(randomBytes(512).buffer.slice(0, 512))];
  for (const a of numbers) {
    for (const b of numbers) {
      multiply(Number(a >> 32n), Number(a & 0xffffffffn), Number(b >> 32n), Number(b & 0xffffffffn));
      assert.equal(join(high, low), wrap(a * b));
    }
  }
});

test("the digest is the sum of what the format says, and follows changes", () => {
  const bits = BigUint64Array.from(EDGES);
  const group = { offset: 2 ** 40 - EDGES.length, size: EDGES.length };
  const terms = EDGES.map((value, i) => mix(BigInt(group.offset + i) * 0x9e3779b97f4a7c15n + value));
  const sum = wrap(terms.reduce((a, b) => a + b));
  assert.equal(digestOf([{ group, bits }]), sum);
  const digest = new Digest();
  digest.subtract(group.offset, 0, 0);
  assert.equal(digest.value, wrap(-terms[0]));
});

test("XXH64 gives the reference values", () => {
  const text = new TextEncoder();
  const known = {
    "": "ef46db3751d8e999",
    a: "d24ec4f1a98c6e5b",
    abc: "44bc2cf5ad770999",
    "Nobody inspects the spammish repetition": "fbcea83c8a378bf1",
  };
  for (const [word, hash] of Object.entries(known)) assert.equal(hex(xxh64(text.encode(word))), hash);
});

test("SHA-256 is that of node at every length of a block", () => {
  for (let length = 0; length < 200; length++) {
    const bytes = new Uint8Array(randomBytes(length));
    assert.equal(sha256(bytes), createHash("sha256").update(bytes).digest("hex"));
  }
});
