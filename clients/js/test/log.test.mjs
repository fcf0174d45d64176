/** Following, where it depends on what the server does; whole logs are followed by tests/clients of the repository. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { follow, LogNotFound, LogUnavailable, sync } from "../evergrad.mjs";

/** Runs `use` with the URL of a server that answers as told. */
async function serving(answer, use) {
  const server = createServer(answer);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await use(`http://127.0.0.1:${server.address().port}/some/log`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

function status(code) {
  return (request, response) => response.writeHead(code).end("no");
}

test("a missing log and a failing server are told apart", async () => {
  for (const code of [403, 404, 410]) await serving(status(code), (url) => assert.rejects(sync(url), LogNotFound));
  await serving(status(500), (url) => assert.rejects(sync(url), LogUnavailable));
  const hangUp = (request) => request.socket.destroy();
  await serving(hangUp, (url) => assert.rejects(sync(url), LogUnavailable));
});

test("names are asked for below the URL, with or without a slash at its end", async () => {
  const asked = [];
  const note = (request, response) => {
    asked.push(request.url);
    response.writeHead(404).end();
  };
  await serving(note, async (url) => {
    await assert.rejects(sync(url));
    await assert.rejects(sync(`${url}//`));
  });
  assert.deepEqual(asked, ["/some/log/latest.json", "/some/log/latest.json"]);
});

test("following tells what fails, tries again, and ends when it is told to, even in a request", async () => {
  const control = new AbortController();
  let asked = 0;
  const errors = [];
  const silentAtLast = (request, response) => {
    asked += 1;
    if (asked <= 2) response.writeHead(503).end();
    else control.abort(); // and no answer ever
  };
  await serving(silentAtLast, async (url) => {
    const onError = (error) => errors.push(error.name);
    assert.equal(await follow(url, { onError, signal: control.signal, pollMs: 1 }), undefined);
  });
  assert.deepEqual(errors, ["LogUnavailable", "LogUnavailable"]);
});
