/** A 64-bit BigInt in 16 hexadecimal digits. */
export function hex(number) {
  return number.toString(16).padStart(16, "0");
}
