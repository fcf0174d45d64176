/** Bytes, varints and bits, none of them read past the end. */

import { check, CorruptRecord } from "./errors.mjs";

/** The JSON object that `bytes` hold. */
export function parseObject(bytes, what) {
  let value;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    throw new CorruptRecord(`${what} is not JSON`);
  }
  check(value !== null && typeof value === "object" && !Array.isArray(value), `${what} is not a JSON object`);
  return value;
}

/** Reads bytes from `at` on. */
export class ByteReader {
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = at;
  }

  get left() {
    return this.bytes.length - this.at;
  }

  /** The next `n` bytes, not copied. */
  take(n) {
    check(n <= this.left, "it ends too early");
    this.at += n;
    return this.bytes.subarray(this.at - n, this.at);
  }

  u8() {
    return this.take(1)[0];
  }

  f32() {
    this.take(4);
    return this.view.getFloat32(this.at - 4, true);
  }

  /** Unsigned LEB128 that must be at most `limit`, itself below 2^53. */
  varint(limit, what) {
    let value = 0;
    for (let unit = 1; ; unit *= 128) {
      const byte = this.u8();
      value += (byte & 0x7f) * unit; // where this rounds, it is far above any limit
      check(value <= limit, `${what} is out of range`);
      if (byte < 0x80) {
        check(byte > 0 || unit === 1, `${what} is written in more bytes than it needs`);
        return value;
      }
      check(unit < 2 ** 56, `${what} is out of range`);
    }
  }

  /** Unsigned LEB128 below 2^63, as a BigInt. */
  wideVarint(what) {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.u8();
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) {
        check(byte > 0 || shift === 0n, `${what} is written in more bytes than it needs`);
        return value;
      }
      check(shift < 56n, `${what} is out of range`);
    }
  }
}

/** Reads bits from the high end of each byte; `finish` moves the bytes' reader behind them. */
export class BitReader {
  #reader;
  #bytes;
  #at; // in bits
  #end;

  constructor(reader) {
    this.#reader = reader;
    this.#bytes = reader.bytes;
    this.#at = reader.at * 8;
    this.#end = reader.bytes.length * 8;
  }

  /** The next `n` bits, at most 24, as a number. */
  #few(n) {
    check(this.#at + n <= this.#end, "it ends too early");
    const word = this.#window(this.#at);
    this.#at += n;
    return n === 0 ? 0 : word >>> (32 - n);
  }

  /** 32 bits from bit `at` on, of which at least the first 25 are the stream's; zeros behind its end. */
  #window(at) {
    const bytes = this.#bytes;
    const i = Math.floor(at / 8);
    return ((bytes[i] << 24) | (bytes[i + 1] << 16) | (bytes[i + 2] << 8) | bytes[i + 3]) << (at % 8);
  }

  /** The next `n` bits, at most 32. */
  bits(n) {
    if (n <= 24) return this.#few(n);
    const top = this.#few(n - 16);
    return top * 65536 + this.#few(16);
  }

  /** The next `n` bits, at most 64; above 53 it is rounded. */
  wide(n) {
    return n <= 32 ? this.bits(n) : this.bits(n - 32) * 2 ** 32 + this.bits(32);
  }

  /** How many zeros come before the next one; both are read. */
  zeros() {
    const start = this.#at;
    for (;;) {
      const zeros = Math.min(Math.clz32(this.#window(this.#at)), 24);
      this.#at += zeros;
      check(this.#at < this.#end, "it ends too early");
      if (zeros < 24) break;
    }
    const count = this.#at - start;
    this.#at += 1;
    return count;
  }

  /** Checks the padding of the last byte. */
  finish() {
    check(this.bits((8 - (this.#at % 8)) % 8) === 0, "padding is zeros");
    this.#reader.at = this.#at / 8;
  }
}
