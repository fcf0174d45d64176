/** Snapshots: safetensors files that say which version of which model they hold. */

import { parseObject } from "./bytes.mjs";
import { check } from "./errors.mjs";
import { hex } from "./hex.mjs";
import { RESERVED_NAME } from "./schema.mjs";
import { State } from "./state.mjs";

const MAX_HEADER_BYTES = 100_000_000; // as safetensors' own readers have it
const DECIMAL = /^[0-9]{1,19}$/;
const HEXADECIMAL = /^[0-9a-f]{16}$/;

/** The table of a safetensors file and the bytes behind it. */
function splitFile(bytes) {
  check(bytes.length >= 8, "a snapshot begins with the length of its header");
  const size = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
  check(size <= MAX_HEADER_BYTES && size <= bytes.length - 8, "a snapshot's header ends too early");
  const end = 8 + Number(size);
  return { table: parseObject(bytes.subarray(8, end), "a snapshot's header"), data: bytes.subarray(end) };
}

/** One number of the metadata, as a BigInt. */
function numberOf(metadata, key, pattern) {
  const text = metadata?.[`evergrad.${key}`];
  check(typeof text === "string" && pattern.test(text), `evergrad.${key} is no number`);
  return BigInt(pattern === HEXADECIMAL ? `0x${text}` : text);
}

/** The tensors of the schema with their place in the data, in the order of their bytes. */
function placesOf(table, schema, length) {
  const names = Object.keys(table).filter((name) => name !== RESERVED_NAME);
  check(names.length === schema.tensors.size, "a snapshot holds the schema's tensors and no other");
  const places = Array.from(schema.tensors.values(), (tensor) => {
    check(Object.hasOwn(table, tensor.name), `tensor ${tensor.name} is missing`);
    const { dtype, shape, data_offsets: offsets } = table[tensor.name] ?? {};
    check(dtype === tensor.dtype.name, `tensor ${tensor.name} is of another dtype`);
    check(JSON.stringify(shape) === JSON.stringify(tensor.shape), `tensor ${tensor.name} is of another shape`);
    check(Array.isArray(offsets) && offsets.length === 2, `tensor ${tensor.name} lies nowhere`);
    const [start, stop] = offsets;
    check(Number.isSafeInteger(start) && start >= 0, `tensor ${tensor.name} lies nowhere`);
    check(stop === start + tensor.size * tensor.dtype.bytes, `tensor ${tensor.name} is of another size`);
    return { tensor, start, stop };
  }).sort((a, b) => a.start - b.start || a.stop - b.stop);
  const end = places.reduce((at, { tensor, start, stop }) => {
    check(start === at, `before tensor ${tensor.name} bytes are left over or told twice`);
    return stop;
  }, 0);
  check(end === length, "a snapshot ends with its last tensor");
  return places;
}

/**
 * Reads a snapshot of a model into memory of its own.
 *
 * @param {Uint8Array} bytes
 * @param {Schema} schema
 * @returns {State}
 * @throws {CorruptRecord} also where its elements have another digest than it says
 */
export function readSnapshot(bytes, schema) {
  const { table, data } = splitFile(bytes);
  const metadata = table[RESERVED_NAME];
  check(metadata?.["evergrad.schema"] === schema.fingerprint, "the snapshot is of another schema");
  const version = numberOf(metadata, "version", DECIMAL);
  numberOf(metadata, "newest_us", DECIMAL);
  numberOf(metadata, "run", HEXADECIMAL);
  const expected = numberOf(metadata, "digest", HEXADECIMAL);
  const places = placesOf(table, schema, data.length); // before memory is taken: a table may claim more than there is
  const arrays = new Map(Array.from(schema.groups.values(), (group) => {
    const values = new group.dtype.Values(group.size);
    return [group, { group, values, bits: new group.dtype.Bits(values.buffer) }];
  }));
  for (const { tensor, start, stop } of places) {
    const { group, values } = arrays.get(schema.groups.get(tensor.dtype));
    new Uint8Array(values.buffer).set(data.subarray(start, stop), (tensor.offset - group.offset) * tensor.dtype.bytes);
  }
  const state = new State(schema, version, Array.from(arrays.values()));
  check(state.digest === expected, `the snapshot has digest ${hex(state.digest)}, it says ${hex(expected)}`);
  return state;
}
