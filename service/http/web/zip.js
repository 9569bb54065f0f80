// Read a zip: its central directory, stored and deflated entries. Enough for a preview.

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const LONGEST_COMMENT = 65_535;

export const isZip = (data) => data[0] === 0x50 && data[1] === 0x4b && data[2] <= 7;

/** Entries as `{name, size, read()}`, in the zip's order; throws `RangeError` for what is none. */
export function entries(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let end = data.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== END) {
    if (--end < data.length - 22 - LONGEST_COMMENT) end = -1;
  }
  if (end < 0) throw new RangeError("not a zip");
  const found = [];
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    if (view.getUint32(at, true) !== ENTRY) throw new RangeError("not a zip");
    const [nameLength, extra, comment] = [28, 30, 32].map((o) => view.getUint16(at + o, true));
    const name = new TextDecoder().decode(data.subarray(at + 46, at + 46 + nameLength));
    const method = view.getUint16(at + 10, true);
    const packed = view.getUint32(at + 20, true);
    const size = view.getUint32(at + 24, true);
    const local = view.getUint32(at + 42, true);
    const read = () => {
      const skip = view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      const begin = local + 30 + skip;
      return unpacked(data.subarray(begin, begin + packed), method, size);
    };
    found.push({ name, size, read });
    at += 46 + nameLength + extra + comment;
  }
  return found;
}

async function unpacked(packed, method, size) {
  if (method === 0) return packed;
  if (method !== 8) throw new RangeError("an unusual compression");
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.getReader();
  const whole = new Uint8Array(size); // what an entry holds beyond its own word is not read
  let filled = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return whole.subarray(0, filled);
    if (filled + value.length > size) throw new RangeError("an entry is longer than it says");
    whole.set(value, filled);
    filled += value.length;
  }
}
