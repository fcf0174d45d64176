/** Everything that a program uses of this client. */
export { decodeUpdate } from "./lib/codec.mjs";
export { hex } from "./lib/hex.mjs";
export { follow, sync } from "./lib/log.mjs";
export { readSnapshot } from "./lib/snapshot.mjs";
export { Schema } from "./lib/schema.mjs";
export { State } from "./lib/state.mjs";
export {
  BaseMismatch, CorruptRecord, DigestMismatch, EvergradError, LogNotFound, LogUnavailable, UnsupportedFormat,
} from "./lib/errors.mjs";
