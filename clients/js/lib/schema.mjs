/** The model as one flat index space. */

import { check } from "./errors.mjs";
import { parseObject } from "./bytes.mjs";
import { sha256 } from "./sha256.mjs";

const MAX_ELEMENTS = 2 ** 40;
/** What safetensors keeps for itself. */
export const RESERVED_NAME = "__metadata__";

/**
 * The dtypes by their code. `Values` holds the elements (patterns of 16 bits for F16 and BF16); `Bits` looks at the
 * same bytes as unsigned integers. The bits of `exponent` are all set in NaN and infinity, and in nothing else.
 */
export const DTYPES = [
  { name: "F64", Values: Float64Array, Bits: BigUint64Array, exponent: 0x7ff0000000000000n },
  { name: "F32", Values: Float32Array, Bits: Uint32Array, exponent: 0x7f800000 },
  { name: "F16", Values: Uint16Array, Bits: Uint16Array, exponent: 0x7c00 },
  { name: "BF16", Values: Uint16Array, Bits: Uint16Array, exponent: 0x7f80 },
  { name: "I64", Values: BigInt64Array, Bits: BigUint64Array },
  { name: "I32", Values: Int32Array, Bits: Uint32Array },
  { name: "I16", Values: Int16Array, Bits: Uint16Array },
  { name: "I8", Values: Int8Array, Bits: Uint8Array },
  { name: "U64", Values: BigUint64Array, Bits: BigUint64Array },
  { name: "U32", Values: Uint32Array, Bits: Uint32Array },
  { name: "U16", Values: Uint16Array, Bits: Uint16Array },
  { name: "U8", Values: Uint8Array, Bits: Uint8Array },
  { name: "BOOL", Values: Uint8Array, Bits: Uint8Array },
].map((dtype) => ({ ...dtype, bytes: dtype.Bits.BYTES_PER_ELEMENT, bits: 8 * dtype.Bits.BYTES_PER_ELEMENT }));

const BY_NAME = new Map(DTYPES.map((dtype) => [dtype.name, dtype]));

/** Tensors, their aliases, and where the elements of each dtype lie: `groups` of {dtype, offset, size}. */
export class Schema {
  constructor(bytes) {
    const { tensors, aliases = {} } = parseObject(bytes, "schema");
    check(Array.isArray(tensors), "a schema lists its tensors");
    this.fingerprint = sha256(bytes).slice(0, 32);
    /** What an update says of its schema. */
    this.short = BigInt(`0x${this.fingerprint.slice(0, 16)}`);
    this.tensors = new Map();
    this.groups = new Map();
    this.size = 0;
    for (const tensor of tensors) this.#add(tensor);
    check(aliases !== null && typeof aliases === "object", "aliases are names of tensors by alias");
    this.aliases = new Map(Object.entries(aliases));
    for (const [alias, name] of this.aliases) {
      check(this.tensors.has(name) && !this.tensors.has(alias), `alias ${alias} names no tensor`);
    }
  }

  #add(tensor) {
    const { name, dtype: code, shape } = tensor ?? {};
    const dtype = BY_NAME.get(code);
    check(typeof name === "string" && !this.tensors.has(name), "every tensor has a name of its own");
    check(name !== RESERVED_NAME, `no tensor is called ${RESERVED_NAME}`);
    check(dtype !== undefined, `tensor ${name} has an unknown dtype`);
    check(Array.isArray(shape) && shape.every((n) => Number.isSafeInteger(n) && n >= 0), `tensor ${name} has no shape`);
    const size = shape.reduce((product, n) => product * n, 1);
    const group = this.groups.get(dtype) ?? { dtype, offset: this.size, size: 0 };
    check(group.offset + group.size === this.size, "tensors of one dtype lie side by side");
    check(this.size + size <= MAX_ELEMENTS, "a model has at most 2^40 elements");
    this.tensors.set(name, { name, dtype, shape, size, offset: this.size });
    this.groups.set(dtype, group);
    group.size += size;
    this.size += size;
  }
}
