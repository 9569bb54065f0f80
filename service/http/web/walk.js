// A walk's frames in the browser, for watching: zips of images, npz and npy arrays.
// What the service makes of a walk is the service's to say; this decodes for the eye only.

import { entries, isZip } from "./zip.js";

const MOST_BYTES = 64 * 2 ** 20;
const MOST_DECODED = 256 * 2 ** 20;
const MOST_FRAMES = 400;
const TALLEST = 192;
const IMAGE = /\.(png|jpe?g|bmp|webp)$/i;
const natural = new Intl.Collator("en", { numeric: true });

/**
 * Frames `{width, height, grey}` of the bytes of a walk, `grey` a byte a pixel, or null for a kind
 * of file that is not played here. Throws for a damaged one.
 */
export async function frames(data) {
  if (data.length > MOST_BYTES) return null;
  let found = null;
  if (isZip(data)) found = await fromZip(data);
  else if (isArray(data)) found = fromArray(data);
  return found?.length ? brightened(found) : null;
}

async function fromZip(data) {
  const all = entries(data).filter((entry) => !entry.name.includes("__MACOSX"));
  const arrays = all.filter((entry) => entry.name.endsWith(".npy"));
  const array = arrays.find((entry) => entry.name === "silhouettes.npy") ?? arrays[0];
  if (array) return array.size > MOST_DECODED ? null : fromArray(await array.read());
  const images = all
    .filter((entry) => IMAGE.test(entry.name))
    .sort((one, other) => natural.compare(one.name, other.name))
    .slice(0, MOST_FRAMES);
  const found = [];
  for (const image of images) found.push(await fromImage(new Blob([await image.read()])));
  return found;
}

async function fromImage(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, TALLEST / bitmap.height);
  const [width, height] = [bitmap.width, bitmap.height].map((s) => Math.max(1, Math.round(s * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) grey[i] = Math.max(data[4 * i], data[4 * i + 1], data[4 * i + 2]);
  return { width, height, grey };
}

const isArray = (data) => data[0] === 0x93 && String.fromCharCode(...data.subarray(1, 6)) === "NUMPY";

/** An npy file of uint8 or bool, [s, h, w]. */
function fromArray(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const wide = data[6] > 1;
  const begin = wide ? 12 : 10;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(data.subarray(begin, begin + length));
  const shape = /'shape': \((\d+), (\d+), (\d+)\)/.exec(header)?.slice(1).map(Number);
  if (!shape || !/'descr': '\|[ub]1'/.test(header) || header.includes("True")) return null;
  const [count, height, width] = shape;
  const pixels = data.subarray(begin + length);
  if (pixels.length < count * height * width) throw new RangeError("the array ends early");
  return Array.from({ length: Math.min(count, MOST_FRAMES) }, (_, i) => ({
    width,
    height,
    grey: pixels.subarray(i * height * width, (i + 1) * height * width),
  }));
}

/** Where nothing is above 127, everything but 0 is the person: as the service sees it. */
function brightened(all) {
  if (all.some((frame) => frame.grey.some((value) => value > 127))) return all;
  return all.map((frame) => ({ ...frame, grey: frame.grey.map((value) => (value ? 255 : 0)) }));
}
