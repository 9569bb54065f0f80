// A training's curve: one metric over steps, as an SVG drawn here.

import { drawn, element } from "./dom.js";

const HEIGHT = 240;
const WIDE = 560;
const NARROW = 330; // on a phone, so that its letters stay legible
const LEFT = 52;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 30;
const TICKS = 5;
const phone = matchMedia("(max-width: 40rem)");

/** A curve of points `[step, value]` up to `total` steps. */
export function curve(name, points, total) {
  const width = phone.matches ? NARROW : WIDE;
  const values = points.map(([, value]) => value);
  const [low, high] = padded(Math.min(...values), Math.max(...values));
  const last = Math.max(total ?? 0, points.at(-1)?.[0] ?? 0, 1);
  const x = (step) => LEFT + ((width - LEFT - RIGHT) * step) / last;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
  const place = ([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;
  const rows = ticks(low, high).map((value) => drawn("g", {},
    drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
    drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value))));
  const columns = ticks(0, last).filter(Number.isInteger).map((step) =>
    drawn("text", { x: x(step), y: HEIGHT - 10, "text-anchor": "middle" }, step));
  const [end] = points.slice(-1);
  const svg = drawn("svg", { class: "curve", viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": end ? `${name} over steps: ${short(end[1])} at step ${end[0]}` : `${name}: nothing yet` },
    ...rows, ...columns,
    drawn("polyline", { class: "line", points: points.map(place).join(" ") }),
    end ? drawn("circle", { class: "dot", cx: x(end[0]), cy: y(end[1]), r: 4 }) : null);
  return element("figure", {}, svg, element("figcaption", {},
    end ? `${name} ${short(end[1])} at step ${end[0]} of ${last}` : "The curve begins with the first steps."));
}

/** A number in a few characters. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function padded(low, high) {
  if (!Number.isFinite(low)) return [0, 1];
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - margin, high + margin];
}

/** Round numbers from `low` to `high`, about `TICKS` of them. */
function ticks(low, high) {
  const rough = (high - low) / TICKS;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
