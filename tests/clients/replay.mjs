// For each folder of schema.json, snapshot.safetensors and updates: one line of JSON with the digest after each. They
// are applied in the order of the list digests.json where there is one, else in that of their names.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { decodeUpdate, hex, readSnapshot, Schema } from "../../clients/js/evergrad.mjs";

for (const folder of process.argv.slice(2)) {
  const read = (name) => new Uint8Array(readFileSync(join(folder, name)));
  const schema = new Schema(read("schema.json"));
  const state = readSnapshot(read("snapshot.safetensors"), schema);
  const digests = { "snapshot.safetensors": hex(state.digest) };
  const told = join(folder, "digests.json");
  const listed = existsSync(told) ? JSON.parse(readFileSync(told)) : undefined;
  const order = Array.isArray(listed) ? listed.map(([name]) => name) : readdirSync(folder).sort();
  for (const name of order.filter((found) => found.endsWith(".eg"))) {
    state.commit(state.resolve(decodeUpdate(read(name), schema)));
    digests[name] = hex(state.digest);
  }
  console.log(JSON.stringify(digests));
}
