/** SHA-256 (FIPS 180-4), since browsers offer theirs on secure pages only. */

/** The first 32 bits of the fractional part of `root(p)` for the first `n` primes. */
function primeBits(n, root) {
  const primes = [];
  for (let k = 2; primes.length < n; k++) if (primes.every((p) => k % p)) primes.push(k);
  return Uint32Array.from(primes, (p) => (root(p) % 1) * 2 ** 32);
}

const START = primeBits(8, Math.sqrt);
const ROUND = primeBits(64, Math.cbrt);

const turn = (x, n) => (x >>> n) | (x << (32 - n));

/** One block of 64 bytes, into `hash`. */
function compress(hash, view, at, w) {
  for (let i = 0; i < 16; i++) w[i] = view.getUint32(at + 4 * i);
  for (let i = 16; i < 64; i++) {
    const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3);
    const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  let [a, b, c, d, e, f, g, h] = hash;
  for (let i = 0; i < 64; i++) {
    const t1 = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUND[i] + w[i]) | 0;
    const t2 = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((x, i) => { hash[i] += x; });
}

/** The digest of `bytes` in 64 hexadecimal digits. */
export function sha256(bytes) {
  const padded = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(bytes.length) * 8n);
  const hash = START.slice();
  const words = new Uint32Array(64);
  for (let at = 0; at < padded.length; at += 64) compress(hash, view, at, words);
  return Array.from(hash, (x) => x.toString(16).padStart(8, "0")).join("");
}
