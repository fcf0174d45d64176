/** Every error that this client throws on purpose; anything else is a defect of it. */

import { hex } from "./hex.mjs";

export class EvergradError extends Error {
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}

/** Bytes that cannot be what they claim to be. */
export class CorruptRecord extends EvergradError {}

/** Written by a format that this client cannot read. */
export class UnsupportedFormat extends EvergradError {}

/** The update starts from another version or state, or belongs to another model. */
export class BaseMismatch extends EvergradError {}

/** The state is not, or would not be, the one that the publisher had; digests are BigInt. */
export class DigestMismatch extends EvergradError {
  constructor(version, expected, found) {
    super(`version ${version} should have digest ${hex(expected)}, this state has ${hex(found)}`);
    Object.assign(this, { version, expected, found });
  }
}

/** Nothing is at that place. */
export class LogNotFound extends EvergradError {}

/** The log could not be reached or read. */
export class LogUnavailable extends EvergradError {}

/** Throws CorruptRecord unless `condition` holds: one line for each rule of the format. */
export function check(condition, rule) {
  if (!condition) throw new CorruptRecord(rule);
}
