/** One update per rule of the format, bit for bit by hand. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { BaseMismatch, CorruptRecord, decodeUpdate, DigestMismatch, UnsupportedFormat } from "../evergrad.mjs";
import { ByteReader } from "../lib/bytes.mjs";
import { readRice } from "../lib/streams.mjs";
import { bits, schemaOf, sealed, updateBytes, zeros } from "../testing.mjs";

const SCHEMA = schemaOf([
  { name: "w", dtype: "F32", shape: [4, 5] },
  { name: "on", dtype: "BOOL", shape: [4] },
  { name: "n", dtype: "I64", shape: [1] },
]);
const STATE = zeros(SCHEMA, 7n);
const HALF = [0, 0, 0, 0x3f];

/** A Rice stream of one block: its parameter in six bits, and what follows. */
const rice = (parameter, rest) => bits(`${parameter.toString(2).padStart(6, "0")} ${rest}`);

/** Indices 5 and 9 are gaps of 5 and 3, with parameter 2: low bits 01 11, then 01 and 1. */
const INDICES = rice(2, "01 11, 01 1");
const STEPS = [0x01, 2, ...HALF, ...INDICES, ...bits("01")];
const decode = (sections) => decodeUpdate(updateBytes(STATE, sections), SCHEMA);

/** What the state would be told to be after the sections: found by being wrong about it. */
function resolved(sections) {
  const wrong = updateBytes(STATE, sections, { digestAfter: ~0n });
  try {
    STATE.resolve(decodeUpdate(wrong, SCHEMA));
  } catch (error) {
    assert(error instanceof DigestMismatch, error);
    return STATE.resolve(decodeUpdate(updateBytes(STATE, sections, { digestAfter: error.found }), SCHEMA));
  }
  throw new assert.AssertionError({ message: "a wrong digest was taken" });
}

test("steps", () => {
  const { sections: [section], version, baseVersion, span } = decode(STEPS);
  assert.deepEqual({ version, baseVersion, span }, { version: 8n, baseVersion: 7n, span: 1 });
  assert.deepEqual([...section.indices], [5, 9]);
  assert.deepEqual([...section.steps], [0.5, -0.5]);
});

const learnedFrom = (lineage, rest = STEPS) =>
  decodeUpdate(updateBytes(STATE, [...lineage, ...rest], { flags: 1 }), SCHEMA);

test("lineage", () => {
  assert.equal(decode(STEPS).examples, undefined);
  const { examples, sections: [section] } = learnedFrom([0xc0, 0x07, 8]);
  assert.deepEqual(examples, { first: 960n, count: 8n });
  assert.deepEqual([...section.indices], [5, 9]);
  const most = [...Array(8).fill(0xff), 0x7f];
  assert.deepEqual(learnedFrom([0, ...most]).examples, { first: 0n, count: 2n ** 63n - 1n });
  assert.deepEqual(learnedFrom([0xfe, ...most.slice(1), 1], []).examples, { first: 2n ** 63n - 2n, count: 1n });
});

const NO_RANGE = {
  "no examples": [5, 0],
  "examples up to 2^63": [...Array(8).fill(0xff), 0x7f, 1],
  "a first example of 64 bits": [...Array(9).fill(0xff), 1, 1],
  "a first example in too many bytes": [0x85, 0, 1],
  "a count of examples in too many bytes": [5, 0x81, 0],
};

for (const [rule, lineage] of Object.entries(NO_RANGE)) {
  test(`refused: ${rule}`, () => assert.throws(() => learnedFrom(lineage), CorruptRecord));
}

for (const cut of [[], [5], [0x85], [5, 0x81]]) {
  test(`refused: lineage cut to ${cut.length} bytes, ${cut}`, () => {
    assert.throws(() => learnedFrom(cut, []), CorruptRecord);
  });
}

test("steps with levels", () => {
  const { sections: [section] } = decode([0x11, 2, ...HALF, ...INDICES, ...bits("01"), 2, ...rice(0, "001 0001")]);
  assert.deepEqual([...section.steps], [4, -0.5]); // levels 2 + 1 and 2 - 2
});

test("runs, and values", () => {
  const runs = [2, ...rice(0, "001 01"), ...rice(0, "01 1")]; // 2, 3 and 5
  const { sections: [section] } = decode([0xa1, 3, ...runs, ...HALF, ...HALF, ...HALF]);
  assert.deepEqual([...section.indices], [2, 3, 5]);
  assert.equal(section.values[0], 0x3f000000);
});

test("differences", () => {
  // z is 5, of three bits, for -3: typically 3, so 0 off; behind it the two bits 01.
  const section = [0x34, 1, 4, ...rice(4, "1000 01"), 3, ...rice(0, "1"), ...bits("01")];
  const { overlays: [{ bits: found }] } = resolved(section);
  assert.deepEqual([...found], [BigInt.asUintN(64, -3n << 4n)]);
});

test("Rice codes of wide parameters and of many blocks", () => {
  const wide = 2 ** 52 + 12345;
  const low = (wide % 2 ** 50).toString(2).padStart(50, "0");
  const [value] = readRice(new ByteReader(Uint8Array.from(rice(50, `${low} 00001`))), 1, 2 ** 53 - 1, "v");
  assert.equal(value, wide);
  const many = rice(1, `0001 0000 ${"11".repeat(128)} 1 ${"1".repeat(129)}`);
  const reader = new ByteReader(Uint8Array.from(many));
  assert.deepEqual([...readRice(reader, 129, 9, "v")], [...Array(128).fill(3), 1]);
  assert.equal(reader.left, 0);
});

const REFUSED = {
  "index outside the dtype": [0x01, 1, ...HALF, ...rice(2, "00 000001"), 0],
  "index far outside": [0x01, 1, ...HALF, ...rice(56, "1".repeat(57)), 0],
  "no elements": [0x01, 0, ...HALF, 0, 0],
  "more elements than bits": [0x01, 0xff, 0x01, ...HALF, 0, 0xff, 0xff],
  "count in too many bytes": [0x01, 0x82, 0x00, ...STEPS.slice(2)],
  "count without an end": [0x01, ...Array(12).fill(0x81)],
  "scale of zero": [0x01, 2, 0, 0, 0, 0, ...STEPS.slice(6)],
  "negative scale": [0x01, 2, 0, 0, 0, 0xbf, ...STEPS.slice(6)],
  "infinite scale": [0x01, 2, 0, 0, 0x80, 0x7f, ...STEPS.slice(6)],
  "kind": [0x41, ...STEPS.slice(1)],
  "dtype": [0x0d, ...STEPS.slice(1)],
  "dtype that the model has not": [0x20, 1, ...rice(0, "1"), ...Array(8).fill(0)],
  "steps of another dtype": [0x04, ...STEPS.slice(1)],
  "Rice parameter": [0x01, 2, ...HALF, 57 << 2, ...STEPS.slice(7)],
  "padding of indices": [...STEPS.slice(0, -2), STEPS.at(-2) | 1, STEPS.at(-1)],
  "padding of signs": [...STEPS.slice(0, -1), STEPS.at(-1) | 1],
  "an end too early": STEPS.slice(0, -1),
  "bytes left over": [...STEPS, 0],
  "level": [0x11, 1, ...HALF, ...rice(0, "1"), 0, 63, ...rice(0, "001")],
  "level below 0": [0x11, 1, ...HALF, ...rice(0, "1"), 0, 0, ...rice(0, "01")],
  "usual level": [0x11, 1, ...HALF, ...rice(0, "1"), 0, 64, ...rice(0, "01")],
  "shift": [0x34, 1, 64, ...rice(4, "1000 01"), 0, ...rice(0, "1")],
  "difference of 65 bits": [0x34, 1, 0, ...rice(4, "1000 01"), 64, ...rice(0, "001"), ...Array(8).fill(0)],
  "runs that do not add up": [0xa1, 3, 1, ...rice(0, "1"), ...rice(0, "01"), ...Array(12).fill(0)],
  "no runs": [0xa1, 3, 0, 0, 0, ...Array(12).fill(0)],
};

for (const [rule, sections] of Object.entries(REFUSED)) {
  test(`refused: ${rule}`, () => assert.throws(() => decode(sections), CorruptRecord));
}

const HEADERS = {
  "another magic": [1, 0x48, CorruptRecord],
  "format 0": [2, 0, CorruptRecord],
  "format 2": [2, 2, UnsupportedFormat],
  "flags": [3, 2, CorruptRecord],
  "flags beside the one of lineage": [3, 0x81, CorruptRecord],
  "span of none": [4, 0, CorruptRecord],
  "span from below 0": [4, 9, CorruptRecord],
  "version of 2^63": [23, 0x80, CorruptRecord],
  "another schema": [32, SCHEMA.short === 0n ? 1 : Number(~SCHEMA.short & 255n), BaseMismatch],
};

for (const [rule, [at, byte, kind]] of Object.entries(HEADERS)) {
  test(`refused: ${rule}`, () => {
    const bytes = updateBytes(STATE, STEPS);
    bytes[at] = byte;
    assert.throws(() => decodeUpdate(sealed(bytes), SCHEMA), kind);
  });
}

test("refused: a checksum", () => {
  const bytes = updateBytes(STATE, STEPS);
  bytes[60] ^= 1;
  assert.throws(() => decodeUpdate(bytes, SCHEMA), CorruptRecord);
});

const UNFIT = {
  "infinity": [0x21, 1, ...rice(0, "1"), 0, 0, 0x80, 0x7f],
  "NaN": [0x21, 1, ...rice(0, "1"), 0, 0, 0xc0, 0xff],
  "a BOOL of 2": [0x2c, 1, ...rice(4, "0100 01"), 2],
  "a step beyond binary32": [0x11, 1, 0, 0, 0, 0x7f, ...rice(0, "1"), 0, ...rice(1, "1 01")],
};

for (const [what, sections] of Object.entries(UNFIT)) {
  test(`refused beside the state: ${what}`, () => {
    assert.throws(() => STATE.resolve(decode(sections)), CorruptRecord);
  });
}

test("a state moves as a whole, when it is committed, and only from its own version", () => {
  const state = zeros(SCHEMA, 7n);
  const start = state.digest;
  const overlapping = [...STEPS, 0x21, 1, ...rice(2, "01 01"), 0, 0, 0x80, 0x3f, ...STEPS]; // 5 becomes 1, between
  const change = resolved(overlapping);
  assert.throws(() => state.resolve(decode(STEPS)), DigestMismatch);
  assert(state.tensor("w").data.every((x) => x === 0));
  assert.equal(state.digest, start);
  const update = decodeUpdate(updateBytes(state, overlapping, { digestAfter: change.digest }), SCHEMA);
  state.commit(state.resolve(update));
  assert.deepEqual([state.tensor("w").data[5], state.tensor("w").data[9]], [1.5, -1]);
  assert.equal(state.version, 8n);
  assert.throws(() => state.resolve(update), BaseMismatch);
  assert.throws(() => state.commit(change), BaseMismatch);
});
