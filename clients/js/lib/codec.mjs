/** One update from its bytes: everything is checked here that needs no state. */

import { ByteReader } from "./bytes.mjs";
import { BaseMismatch, check, UnsupportedFormat } from "./errors.mjs";
import { hex } from "./hex.mjs";
import { DTYPES } from "./schema.mjs";
import { readDifferences, readIndices, readLevels } from "./streams.mjs";
import { xxh64 } from "./xxhash64.mjs";

export const FORMAT = 1;
const HEADER_BYTES = 64;
const BELOW = 2n ** 63n; // versions, and numbers of examples
const LINEAGE = 1; // a flag
const MAX_COUNT = 2 ** 40;

const [STEPS, LEVELS, VALUES, DIFFERENCES] = [0, 1, 2, 3];
const RUNS = 8;

/**
 * Reads an update of a model.
 *
 * @param {Uint8Array} bytes
 * @param {Schema} schema
 * @returns {{span, version, baseVersion, run, schema, digestBefore, digestAfter, newestUs, examples, sections}} 64-bit
 *   fields are BigInt; examples is {first, count}, or undefined where it is not said; a section is {kind, group, indices (in the group), and steps, values or shift and differences}.
 * @throws {CorruptRecord | UnsupportedFormat | BaseMismatch} the last where it belongs to another model
 */
export function decodeUpdate(bytes, schema) {
  check(bytes.length >= 3 && bytes[0] === 0x45 && bytes[1] === 0x47, "an update begins with EG");
  if (bytes[2] > FORMAT) throw new UnsupportedFormat(`the update has format ${bytes[2]}, this client reads ${FORMAT}`);
  check(bytes[2] === FORMAT, "the format is 1 or more");
  check(bytes.length >= HEADER_BYTES, "it ends too early");
  const reader = new ByteReader(bytes, HEADER_BYTES);
  const zeroed = bytes.slice();
  zeroed.fill(0, 8, 16);
  check(xxh64(zeroed) === reader.view.getBigUint64(8, true), "the checksum is another");
  const update = readHeader(reader.view);
  if (update.schema !== schema.short) {
    throw new BaseMismatch(`the update is for schema ${hex(update.schema)}, this model has ${hex(schema.short)}`);
  }
  if (bytes[3] & LINEAGE) update.examples = readExamples(reader);
  update.sections = [];
  while (reader.left > 0) update.sections.push(readSection(reader, schema));
  return update;
}

function readHeader(view) {
  const [version, run, schema, digestBefore, digestAfter, newestUs] = [16, 24, 32, 40, 48, 56].map((at) =>
    view.getBigUint64(at, true));
  const span = view.getUint32(4, true);
  check((view.getUint8(3) & ~LINEAGE) === 0, "flags but the first are 0");
  check(version < BELOW, "a version is below 2^63");
  check(span >= 1 && BigInt(span) <= version, "an update spans at least one version, and none below 0");
  return { span, version, baseVersion: version - BigInt(span), run, schema, digestBefore, digestAfter, newestUs };
}

function readExamples(reader) {
  const first = reader.wideVarint("the first example");
  const count = reader.wideVarint("a count of examples");
  check(count >= 1n && first + count < BELOW, "a range of examples is out of range");
  return { first, count };
}

function readSection(reader, schema) {
  const tag = reader.u8();
  const kind = (tag >> 4) & 7;
  const dtype = DTYPES[tag & 15];
  check(kind <= DIFFERENCES && dtype !== undefined, "the section's kind or dtype is unknown");
  check(kind >= VALUES || dtype.name === "F32", "steps are for F32 only");
  const group = schema.groups.get(dtype);
  check(group !== undefined, "the model has nothing of the section's dtype");
  const count = reader.varint(MAX_COUNT, "a count");
  check(count >= 1 && count <= 8 * reader.left, "a count is out of range");
  const asRuns = tag >> 4 >= RUNS;
  if (kind === VALUES) return readValues(reader, count, asRuns, group);
  if (kind === DIFFERENCES) return readDifferenceSection(reader, count, asRuns, group);
  return readSteps(reader, count, asRuns, group, kind === LEVELS);
}

function readSteps(reader, count, asRuns, group, withLevels) {
  const scale = reader.f32();
  check(scale > 0 && Number.isFinite(scale), "a scale is finite and above 0");
  const indices = readIndices(reader, count, asRuns, group);
  const signs = reader.take(Math.ceil(count / 8));
  const spare = signs.length * 8 - count;
  check((signs[signs.length - 1] & ((1 << spare) - 1)) === 0, "padding is zeros");
  const levels = withLevels ? readLevels(reader, count) : undefined;
  const steps = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const size = levels === undefined ? scale : scale * 2 ** levels[i];
    steps[i] = (signs[i >> 3] >> (7 - (i & 7))) & 1 ? -size : size;
  }
  return { kind: "steps", group, indices, steps };
}

function readValues(reader, count, asRuns, group) {
  const indices = readIndices(reader, count, asRuns, group);
  const copy = reader.take(count * group.dtype.bytes).slice(); // a copy of its own is aligned
  return { kind: "values", group, indices, values: new group.dtype.Bits(copy.buffer) };
}

function readDifferenceSection(reader, count, asRuns, group) {
  const shift = reader.u8();
  check(shift < group.dtype.bits, "a shift is less than the dtype's bits");
  const indices = readIndices(reader, count, asRuns, group);
  return { kind: "differences", group, indices, shift, differences: readDifferences(reader, count) };
}
