/** One version of a model. An update is resolved, which changes nothing, then committed, which cannot fail. */

import { Digest, digestOf, halvesOf } from "./digest.mjs";
import { BaseMismatch, check, CorruptRecord, DigestMismatch } from "./errors.mjs";

/** The elements of one group that an update touches, and what becomes of them: beside the state. */
class Overlay {
  constructor(array, sections) {
    this.group = array.group;
    this.array = array;
    this.indices = sections.length === 1 ? sections[0].indices : union(sections.map((section) => section.indices));
    this.bits = new array.group.dtype.Bits(this.indices.length);
    for (let i = 0; i < this.indices.length; i++) this.bits[i] = array.bits[this.indices[i]];
    if (sections.length === 1) this.bits = moved(sections[0], this.bits);
    else for (const section of sections) this.#through(section);
  }

  /** Applies one of several sections. */
  #through(section) {
    const places = section.indices.map((index) => positionOf(index, this.indices));
    const bits = new this.group.dtype.Bits(places.length);
    for (let i = 0; i < places.length; i++) bits[i] = this.bits[places[i]];
    const now = moved(section, bits);
    for (let i = 0; i < places.length; i++) this.bits[places[i]] = now[i];
  }

  /** Moves the digest by what the elements were and by what they become. */
  move(digest) {
    const old = halvesOf(this.array.bits);
    const now = halvesOf(this.bits);
    const wide = now !== this.bits;
    for (let i = 0; i < this.indices.length; i++) {
      const at = this.indices[i];
      const index = this.group.offset + at;
      digest.subtract(index, wide ? old[2 * at + 1] : 0, wide ? old[2 * at] : old[at]);
      digest.add(index, wide ? now[2 * i + 1] : 0, wide ? now[2 * i] : now[i]);
    }
  }

  commit() {
    const mine = this.array.bits;
    for (let i = 0; i < this.indices.length; i++) mine[this.indices[i]] = this.bits[i];
  }
}

/** All numbers of some ascending lists, once each, ascending. */
function union(lists) {
  const all = new Float64Array(lists.reduce((sum, list) => sum + list.length, 0));
  lists.reduce((at, list) => (all.set(list, at), at + list.length), 0);
  return all.sort().filter((number, i) => i === 0 || number !== all[i - 1]);
}

/** Where `number` stands in an ascending list that holds it. */
function positionOf(number, list) {
  let low = 0;
  for (let high = list.length; low < high; ) {
    const middle = (low + high) >>> 1;
    if (list[middle] < number) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class State {
  /** Takes `arrays`, [{group, values, bits}] in the schema's order, as its own. */
  constructor(schema, version, arrays, digest = digestOf(arrays)) {
    this.schema = schema;
    /** A BigInt, like the digest. */
    this.version = version;
    this.digest = digest;
    this.arrays = new Map(arrays.map((array) => [array.group, array]));
  }

  /** The tensor of that name or alias: {dtype, shape, data}. `data` is a view that later updates change in place. */
  tensor(name) {
    const tensor = this.schema.tensors.get(this.schema.aliases.get(name) ?? name);
    if (tensor === undefined) return undefined;
    const { group, values } = this.arrays.get(this.schema.groups.get(tensor.dtype));
    const start = tensor.offset - group.offset;
    return { dtype: tensor.dtype.name, shape: tensor.shape, data: values.subarray(start, start + tensor.size) };
  }

  /**
   * What a decoded update comes to here, checked whole; nothing is changed.
   *
   * @throws {BaseMismatch | DigestMismatch | CorruptRecord}
   */
  resolve(update) {
    this.#checkBase(update);
    const overlays = [];
    const moved = new Digest();
    for (const array of this.arrays.values()) {
      const sections = update.sections.filter((section) => section.group === array.group);
      if (sections.length === 0) continue;
      const overlay = new Overlay(array, sections);
      overlay.move(moved);
      overlays.push(overlay);
    }
    const digest = BigInt.asUintN(64, this.digest + moved.value);
    if (digest !== update.digestAfter) throw new DigestMismatch(update.version, update.digestAfter, digest);
    return { base: this.version, version: update.version, digest, overlays };
  }

  /** Takes what `resolve` returned, of this very version. */
  commit({ base, version, digest, overlays }) {
    if (base !== this.version) throw new BaseMismatch(`resolved at version ${base}, committed at ${this.version}`);
    for (const overlay of overlays) overlay.commit();
    this.version = version;
    this.digest = digest;
  }

  #checkBase({ baseVersion, schema, digestBefore }) {
    if (schema !== this.schema.short) throw new BaseMismatch("the update is for another schema");
    if (baseVersion !== this.version) {
      throw new BaseMismatch(`the update is for version ${baseVersion}, this is ${this.version}`);
    }
    if (digestBefore !== this.digest) throw new DigestMismatch(baseVersion, digestBefore, this.digest);
  }
}

/** The bits that a section makes of those that it finds, all of which may stand in a state. */
function moved(section, bits) {
  const now = apply(section, bits);
  checkElements(section.group.dtype, now);
  return now;
}

function apply(section, bits) {
  if (section.kind === "values") return section.values;
  if (section.kind === "steps") {
    const floats = new Float32Array(bits.buffer);
    for (let i = 0; i < floats.length; i++) floats[i] += section.steps[i]; // binary64, then rounded: as one addition
    return bits;
  }
  return section.group.dtype.bits === 64 ? shiftWide(section, bits) : shiftNarrow(section, bits);
}

function shiftNarrow({ group, shift, differences }, bits) {
  const { dtype } = group;
  const all = dtype.bits === 32 ? -1 : (1 << dtype.bits) - 1;
  const sign = dtype.exponent === undefined ? 0 : 1 << (dtype.bits - 1);
  for (let i = 0; i < bits.length; i++) {
    const old = bits[i];
    const ordered = (old & sign ? ~old : old | sign) & all;
    const moved = (((ordered >>> shift) + differences[2 * i]) << shift) & all;
    bits[i] = sign === 0 ? moved : moved & sign ? moved ^ sign : ~moved;
  }
  return bits;
}

function shiftWide({ group, shift, differences }, bits) {
  const sign = group.dtype.exponent === undefined ? 0n : 1n << 63n;
  const added = new BigUint64Array(differences.buffer);
  const by = BigInt(shift);
  for (let i = 0; i < bits.length; i++) {
    const old = bits[i];
    const ordered = BigInt.asUintN(64, old & sign ? ~old : old | sign);
    const moved = BigInt.asUintN(64, ((ordered >> by) + added[i]) << by);
    bits[i] = sign === 0n ? moved : moved & sign ? moved ^ sign : BigInt.asUintN(64, ~moved);
  }
  return bits;
}

/** No NaN or infinity, and no BOOL but 0 and 1. */
export function checkElements({ name, exponent }, bits) {
  if (name === "BOOL") check(bits.every((bit) => bit <= 1), "a BOOL is 0 or 1");
  if (exponent === undefined) return;
  for (let i = 0; i < bits.length; i++) {
    if ((bits[i] & exponent) === exponent) throw new CorruptRecord(`element ${i} of a ${name} would not be finite`);
  }
}
