// For each line of FOLDER/snapshots.hex, or else of FOLDER/updates.hex, a snapshot or an update of the model in that
// folder: what becomes of it, one line each.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { decodeUpdate, EvergradError, hex, readSnapshot, Schema } from "../../clients/js/evergrad.mjs";

const [folder] = process.argv.slice(2);
const read = (name) => new Uint8Array(readFileSync(join(folder, name)));
const schema = new Schema(read("schema.json"));
const state = readSnapshot(read("snapshot.safetensors"), schema);
const ofSnapshots = existsSync(join(folder, "snapshots.hex"));

function judge(bytes) {
  try {
    if (ofSnapshots) return `digest ${hex(readSnapshot(bytes, schema).digest)}`;
    const update = decodeUpdate(bytes, schema);
    const { first, count } = update.examples ?? { first: "none", count: "said" };
    return `digest ${hex(state.resolve(update).digest)}, examples ${first} ${count}`;
  } catch (error) {
    if (!(error instanceof EvergradError)) throw error; // a defect: the test sees the trace
    return error.found === undefined ? error.name : `${error.name} ${hex(error.found)}`;
  }
}

const text = readFileSync(join(folder, ofSnapshots ? "snapshots.hex" : "updates.hex"), "utf8");
const lines = text.split("\n").filter((line) => line);
console.log(lines.map((line) => judge(new Uint8Array(Buffer.from(line.slice(1), "hex")))).join("\n"));
