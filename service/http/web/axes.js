// What every chart here has: a size for this screen, an upright axis with its lines and numbers.

import { drawn } from "./dom.js";
import { short } from "./figures.js";

const HEIGHT = 240;
const WIDE = 560;
const NARROW = 330; // on a phone, so that its letters stay legible
const LEFT = 52;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 30;
const TICKS = 5;
const phone = matchMedia("(max-width: 40rem)");

/**
 * The frame of a chart of `values`: `{x(share), y(value), bottom, svg(attributes, …children)}`, where
 * a share is 0 at the left and 1 at the right.
 */
export function frame(values) {
  const width = phone.matches ? NARROW : WIDE;
  const [low, high] = padded(Math.min(...values), Math.max(...values));
  const x = (share) => LEFT + (width - LEFT - RIGHT) * share;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
  const lines = ticks(low, high).map((value) => drawn("g", {},
    drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
    drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value))));
  const svg = (attributes, ...children) =>
    drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", ...attributes }, ...lines, ...children);
  return { x, y, bottom: HEIGHT - BOTTOM, svg };
}

/** A number or a name below the chart, at `x`. */
export const label = (x, text, attributes = {}) =>
  drawn("text", { x, y: HEIGHT - 10, "text-anchor": "middle", ...attributes }, text);

/** Round numbers from `low` to `high`, about `TICKS` of them. */
export function ticks(low, high) {
  const rough = (high - low) / TICKS;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  const number = Math.floor(high / step) - first + 1;
  return Array.from({ length: number }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function padded(low, high) {
  if (!Number.isFinite(low)) return [0, 1];
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - margin, high + margin];
}
