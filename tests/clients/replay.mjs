// For each folder of schema.json, snapshot.safetensors and updates: one line of JSON with the digest after each. They
// are applied in the order of digests.json where that is there, else in that of their names.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { decodeUpdate, hex, readSnapshot, Schema } from "../../clients/js/evergrad.mjs";

for (const folder of process.argv.slice(2)) {
  const read = (name) => new Uint8Array(readFileSync(join(folder, name)));
  const schema = new Schema(read("schema.json"));
  const state = readSnapshot(read("snapshot.safetensors"), schema);
  const digests = { "snapshot.safetensors": hex(state.digest) };
  const order = existsSync(join(folder, "digests.json"))
    ? JSON.parse(readFileSync(join(folder, "digests.json"))).map(([name]) => name)
    : readdirSync(folder).filter((found) => found.endsWith(".eg")).sort();
  for (const name of order) {
    state.commit(state.resolve(decodeUpdate(read(name), schema)));
    digests[name] = hex(state.digest);
  }
  console.log(JSON.stringify(digests));
}
