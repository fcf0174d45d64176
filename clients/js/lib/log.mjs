/** Follows a log over HTTP, by the names of its objects; nothing is listed. */

import { parseObject } from "./bytes.mjs";
import { decodeUpdate, FORMAT } from "./codec.mjs";
import { check, EvergradError, LogNotFound, LogUnavailable, UnsupportedFormat } from "./errors.mjs";
import { Schema } from "./schema.mjs";
import { readSnapshot } from "./snapshot.mjs";

const ANSWER_MS = 30_000;
const MAX_WAIT_MS = 30_000;
/** S3 says 403 of an object that is not there where the reader may not list. */
const MISSING = new Set([403, 404, 410]);
/** No fold of more versions is asked for: folds are at most a mebibyte, and so long ones are left out by writers. */
const MAX_SPAN = 2 ** 20;

const nameOf = (version) => version.toString().padStart(12, "0");

/** The objects of one log. */
class RemoteLog {
  constructor(url, signal) {
    this.url = url.replace(/\/*$/, "/");
    this.signal = signal;
  }

  /** The bytes of an object, undefined where there is none. */
  async read(name) {
    const control = new AbortController();
    const stop = () => control.abort();
    const timer = setTimeout(stop, ANSWER_MS); // until the answer begins; a long one may take its time
    this.signal?.addEventListener("abort", stop);
    try {
      if (this.signal?.aborted) stop();
      const answer = await fetch(this.url + name, { cache: "no-store", signal: control.signal });
      clearTimeout(timer);
      if (!answer.ok) await answer.body?.cancel();
      if (MISSING.has(answer.status)) return undefined;
      if (!answer.ok) throw new LogUnavailable(`${name}: the server answers ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    } catch (error) {
      if (error instanceof EvergradError) throw error;
      throw new LogUnavailable(`${name}: ${error.cause?.message ?? error.message}`);
    } finally {
      clearTimeout(timer);
      this.signal?.removeEventListener("abort", stop);
    }
  }

  /** What `latest.json` says: {log, snapshot}. It is replaced, so it may be gone or torn for a moment. */
  async latest() {
    const bytes = await this.read("latest.json");
    if (bytes === undefined) throw new LogNotFound(`no update log at ${this.url}: it has no latest.json`);
    const { log, snapshot } = parseObject(bytes, "latest.json");
    check(typeof log === "string" && Number.isSafeInteger(snapshot) && snapshot >= 0, "latest.json names no snapshot");
    return { log, snapshot: BigInt(snapshot) };
  }

  /** What `evergrad.json` says. */
  async root() {
    const bytes = await this.read("evergrad.json");
    if (bytes === undefined) throw new LogNotFound(`no update log at ${this.url}: it has no evergrad.json`);
    const root = parseObject(bytes, "evergrad.json");
    if (root.format > FORMAT) throw new UnsupportedFormat(`the log has format ${root.format}, this client ${FORMAT}`);
    check(root.format === FORMAT && /^[0-9a-f]{32}$/.test(root.schema), "evergrad.json names no schema");
    check(Number.isSafeInteger(root.fold_base) && root.fold_base >= 2, "evergrad.json has no fold_base");
    return { log: root.log, fingerprint: root.schema, foldBase: root.fold_base };
  }

  async schema(fingerprint) {
    const bytes = await this.read(`schema/${fingerprint}.json`);
    check(bytes !== undefined, "the log's schema is missing");
    const schema = new Schema(bytes);
    check(schema.fingerprint === fingerprint, "the log's schema is another than its name says");
    return schema;
  }

  async snapshot(version, schema) {
    const bytes = await this.read(`snapshots/${nameOf(version)}.safetensors`);
    check(bytes !== undefined, `snapshot ${version} is missing`);
    const state = readSnapshot(bytes, schema);
    check(state.version === version, `snapshot ${version} holds version ${state.version}`);
    return state;
  }

  /** The update or fold from `version` on, decoded; undefined where there is none. */
  async update(version, span, schema) {
    const to = version + BigInt(span);
    const name = span === 1 ? `updates/${nameOf(to)}.eg` : `folds/${nameOf(version)}-${nameOf(to)}.eg`;
    const bytes = await this.read(name);
    if (bytes === undefined) return undefined;
    const update = decodeUpdate(bytes, schema);
    check(update.span === span && update.version === to, `${name} holds version ${update.version}`);
    return update;
  }
}

/** One copy of the model and the log that it follows. Once `begin` has succeeded, there is always a good version. */
class Replica {
  constructor(url, { signal, until } = {}) {
    this.log = new RemoteLog(url, signal);
    this.until = until === undefined ? undefined : BigInt(until);
    this.state = undefined;
    /** How many updates came since nothing was there; many ask for folds. */
    this.unbroken = Infinity;
  }

  /** Takes the snapshot that `latest.json` names. */
  async begin({ log, snapshot }) {
    let { root } = this;
    if (root?.log !== log) {
      root = await this.log.root();
      if (root.log !== log) throw new LogUnavailable("latest.json is of another log than evergrad.json");
      root.schema = await this.log.schema(root.fingerprint);
    }
    this.state = await this.log.snapshot(snapshot, root.schema);
    this.root = root;
    this.unbroken = Infinity;
  }

  /** Goes forward by one object. Gives whether there was one; throws where there is one and it cannot be used. */
  async advance() {
    if (this.state === undefined) {
      await this.begin(await this.log.latest());
      return true;
    }
    const { found, problem } = await this.#take(this.#spans());
    if (found) return true;
    const latest = await this.log.latest();
    const anew = latest.log !== this.root.log;
    if (anew || latest.snapshot > this.state.version) {
      // Between the two requests the update may have come, and a snapshot after it: that is no loss.
      if (!anew && problem === undefined && (await this.#take([1])).found) return true;
      await this.begin(latest);
      return true;
    }
    this.unbroken = 0;
    if (problem !== undefined) throw problem;
    return false;
  }

  /** Applies the first of the spans from here on that is there and fits. */
  async #take(spans) {
    let problem;
    for (const span of spans) {
      try {
        const update = await this.log.update(this.state.version, span, this.root.schema);
        if (update === undefined) continue;
        this.state.commit(this.state.resolve(update));
        this.unbroken += span;
        return { found: true };
      } catch (error) {
        if (!(error instanceof EvergradError) || error instanceof LogUnavailable) throw error;
        problem = error;
      }
    }
    return { found: false, problem };
  }

  /** The spans to ask for at this version, the longest first. */
  #spans() {
    const { foldBase } = this.root;
    const spans = [1];
    if (this.unbroken < foldBase) return spans;
    for (let span = foldBase; span <= MAX_SPAN && this.state.version % BigInt(span) === 0n; span *= foldBase) {
      if (this.until === undefined || this.state.version + BigInt(span) <= this.until) spans.unshift(span);
    }
    return spans;
  }

  get done() {
    return this.until !== undefined && this.state !== undefined && this.state.version >= this.until;
  }
}

/** Resolves after `ms`, or at once when the signal is aborted. */
function wait(ms, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}

/**
 * The newest version of the model whose log is at `url`.
 *
 * @returns {Promise<State>}
 * @throws {EvergradError} it cannot be reached, or something in it cannot be applied
 */
export async function sync(url, { signal } = {}) {
  const replica = new Replica(url, { signal });
  while (await replica.advance());
  return replica.state;
}

/**
 * Keeps a copy of the model up to date until `signal` is aborted, or version `until` is reached.
 *
 * Whatever fails, the last good version stays; `onError` is told, and it is tried again, after longer and longer waits.
 *
 * @param {string} url
 * @param {object} options
 * @param {(state: State) => void} options.onUpdate is called with every version that was reached, the first one
 *   included, before the next one is asked for; a promise is awaited. The same State moves on, save where the log
 *   continues from a snapshot: that is a new one, and of another schema where the model was given other tensors.
 * @param {(error: EvergradError) => void} options.onError
 * @param {AbortSignal} options.signal
 * @param {number} options.pollMs how long to wait where nothing new is there
 * @returns {Promise<State | undefined>} the last version
 */
export async function follow(url, { onUpdate, onError, signal, pollMs = 1000, until } = {}) {
  const replica = new Replica(url, { signal, until });
  let waitMs = pollMs;
  while (!signal?.aborted && !replica.done) {
    let moved = false;
    try {
      moved = await replica.advance();
      waitMs = pollMs;
    } catch (error) {
      if (signal?.aborted) break;
      if (!(error instanceof EvergradError)) throw error;
      onError?.(error);
      waitMs = Math.min(2 * waitMs, Math.max(pollMs, MAX_WAIT_MS));
    }
    if (moved) await onUpdate?.(replica.state);
    else await wait(waitMs, signal);
  }
  return replica.state;
}
