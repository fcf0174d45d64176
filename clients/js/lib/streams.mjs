/** The streams of numbers inside a section: Rice-coded, indices and differences. */

import { BitReader } from "./bytes.mjs";
import { check } from "./errors.mjs";

const MAX_LEVEL = 63;
const BLOCK = 128;
const MAX_PARAMETER = 56;
const MAX_INDEX = 2 ** 40;

/** `n` numbers, each at most `limit` (itself below 2^53). */
export function readRice(reader, n, limit, what) {
  check(n <= 8 * reader.left, "it ends too early"); // before memory for n numbers is asked for
  const bits = new BitReader(reader);
  const smallest = bits.bits(6);
  const blocks = Math.ceil(n / BLOCK);
  const parameters = new Uint8Array(blocks).fill(smallest);
  if (blocks > 1) for (let i = 0; i < blocks; i++) parameters[i] += bits.bits(4);
  check(parameters.every((r) => r <= MAX_PARAMETER), "a Rice parameter is at most 56");
  const numbers = new Float64Array(n);
  for (let i = 0; i < n; i++) numbers[i] = bits.wide(parameters[Math.floor(i / BLOCK)]);
  for (let i = 0; i < n; i++) {
    numbers[i] += bits.zeros() * 2 ** parameters[Math.floor(i / BLOCK)];
    check(numbers[i] <= limit, `${what} is out of range`);
  }
  bits.finish();
  return numbers;
}

/** `count` ascending indices, told one by one. */
function readGaps(reader, count) {
  const indices = readRice(reader, count, MAX_INDEX, "an index");
  let next = 0;
  for (let i = 0; i < count; i++) {
    indices[i] += next;
    check(indices[i] < MAX_INDEX, "an index is out of range");
    next = indices[i] + 1;
  }
  return indices;
}

/** `count` ascending indices, told as runs of neighbours. */
function readRuns(reader, count) {
  const runs = reader.varint(count, "the number of runs");
  check(runs > 0, "the number of runs is out of range");
  const gaps = readRice(reader, runs, MAX_INDEX, "an index");
  const lengths = readRice(reader, runs, count - 1, "a run's length");
  const indices = new Float64Array(count);
  let filled = 0;
  let next = 0;
  for (let i = 0; i < runs; i++) {
    next += gaps[i];
    const end = filled + lengths[i] + 1;
    check(end <= count && next + lengths[i] < MAX_INDEX, "the runs do not add up to the count");
    while (filled < end) indices[filled++] = next++;
  }
  check(filled === count, "the runs do not add up to the count");
  return indices;
}

/** `count` strictly ascending indices that all lie in `group`, told as numbers inside it. */
export function readIndices(reader, count, asRuns, group) {
  const indices = asRuns ? readRuns(reader, count) : readGaps(reader, count);
  check(indices[0] >= group.offset && indices[count - 1] < group.offset + group.size, "an index is of another dtype");
  for (let i = 0; i < count; i++) indices[i] -= group.offset;
  return indices;
}

const unfold = (z) => (z % 2 === 0 ? z / 2 : -(z + 1) / 2);

/** `count` levels of steps, told relative to one. */
export function readLevels(reader, count) {
  const usual = reader.u8();
  const levels = readRice(reader, count, 2 * MAX_LEVEL, "a level");
  for (let i = 0; i < count; i++) {
    levels[i] = usual + unfold(levels[i]);
    check(usual <= MAX_LEVEL && levels[i] >= 0 && levels[i] <= MAX_LEVEL, "a level is out of range");
  }
  return levels;
}

/** `count` signed 64-bit numbers as two's complement, low half before high half. */
export function readDifferences(reader, count) {
  const typical = reader.take(Math.ceil(count / BLOCK));
  const lengths = readRice(reader, count, 128, "a difference's number of bits");
  for (let i = 0; i < count; i++) {
    lengths[i] = typical[Math.floor(i / BLOCK)] + unfold(lengths[i]);
    check(lengths[i] >= 0 && lengths[i] <= 64, "a difference's number of bits is out of range");
  }
  const bits = new BitReader(reader);
  const halves = new Uint32Array(2 * count);
  for (let i = 0; i < count; i++) {
    const n = lengths[i] - 1; // the highest bit is not told: it is a one
    let high = 0;
    let low = 0;
    if (n >= 32) {
      high = bits.bits(n - 32) + 2 ** (n - 32);
      low = bits.bits(32);
    } else if (n >= 0) {
      low = bits.bits(n) + 2 ** n;
    }
    const sign = -(low & 1); // all ones for a negative number
    halves[2 * i] = ((low >>> 1) | (high << 31)) ^ sign;
    halves[2 * i + 1] = (high >>> 1) ^ sign;
  }
  bits.finish();
  return halves;
}
