/** Every error that this client throws on purpose; anything else is a defect of it. */

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

/** The state would not be the one that the publisher had. */
export class DigestMismatch extends EvergradError {}

/** Nothing is at that place. */
export class LogNotFound extends EvergradError {}

/** The log could not be reached or read. */
export class LogUnavailable extends EvergradError {}

/** Throws CorruptRecord unless `condition` holds: one line for each rule of the format. */
export function check(condition, rule) {
  if (!condition) throw new CorruptRecord(rule);
}
