/** Makes schemas, states and updates for this client's own tests: the plainest bytes that the format allows. */

import { Schema, State } from "./evergrad.mjs";
import { xxh64 } from "./lib/xxhash64.mjs";

/** Bits, written as text of 0 and 1 (anything else is for the reader's eye), padded to bytes. */
export function bits(text) {
  const plain = text.replace(/[^01]/g, "");
  const bytes = plain.padEnd(Math.ceil(plain.length / 8) * 8, "0").match(/.{8}/g) ?? [];
  return bytes.map((byte) => parseInt(byte, 2));
}

export function schemaOf(tensors) {
  return new Schema(new TextEncoder().encode(JSON.stringify({ tensors, aliases: {} })));
}

/** A state of zeros. */
export function zeros(schema, version) {
  return new State(schema, version, Array.from(schema.groups.values(), (group) => {
    const values = new group.dtype.Values(group.size);
    return { group, values, bits: new group.dtype.Bits(values.buffer) };
  }));
}

/** The bytes with the checksum that belongs to them. */
export function sealed(bytes) {
  const sealedBytes = Uint8Array.from(bytes);
  sealedBytes.fill(0, 8, 16);
  new DataView(sealedBytes.buffer).setBigUint64(8, xxh64(sealedBytes), true);
  return sealedBytes;
}

/** An update from the version of `state` to the next, with its sections as bytes, and before them what flags announce. */
export function updateBytes(state, sections, { digestAfter = state.digest, span = 1, flags = 0 } = {}) {
  const bytes = new Uint8Array(64 + sections.length);
  bytes.set([0x45, 0x47, 1, flags]);
  bytes.set(sections, 64);
  const view = new DataView(bytes.buffer);
  view.setUint32(4, span, true);
  const fields = [state.version + BigInt(span), 0x1234n, state.schema.short, state.digest, digestAfter, 0n];
  fields.forEach((field, i) => view.setBigUint64(16 + 8 * i, field, true));
  return sealed(bytes);
}
