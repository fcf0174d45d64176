#!/usr/bin/env node
/** node cli.mjs URL [--until VERSION]: follows a log and prints {"version":…,"digest":"…"} of what it came to. */

import { EvergradError, follow, hex, sync } from "./evergrad.mjs";

const POLL_MS = 100;

function parse([url, option, until, ...more]) {
  const plain = url !== undefined && !url.startsWith("-");
  if (plain && option === undefined) return { url };
  if (plain && option === "--until" && /^[0-9]{1,18}$/.test(until) && more.length === 0) return { url, until };
  return undefined;
}

async function main(words) {
  const options = parse(words);
  if (options === undefined) {
    console.error("usage: node cli.mjs URL [--until VERSION]");
    return 2;
  }
  const { url, until } = options;
  try {
    const onError = (error) => console.error(`${error.name}: ${error.message}`);
    const state = until === undefined ? await sync(url) : await follow(url, { until, onError, pollMs: POLL_MS });
    console.log(`{"version":${state.version},"digest":"${hex(state.digest)}"}`);
    return 0;
  } catch (error) {
    if (!(error instanceof EvergradError)) throw error;
    console.error(`${error.name}: ${error.message}`);
    return 1;
  }
}

process.exitCode = await main(process.argv.slice(2));
