// A training's curve: one metric over steps, as an SVG drawn here.

import { frame, label, ticks } from "./axes.js";
import { drawn, element } from "./dom.js";
import { short } from "./figures.js";

/** A curve of points `[step, value]` up to `total` steps. */
export function curve(name, points, total) {
  const last = Math.max(total ?? 0, points.at(-1)?.[0] ?? 0, 1);
  const { x, y, svg } = frame(points.map(([, value]) => value));
  const place = ([step, value]) => `${x(step / last).toFixed(1)},${y(value).toFixed(1)}`;
  const steps = ticks(0, last).filter(Number.isInteger).map((step) => label(x(step / last), step));
  const end = points.at(-1);
  return element("figure", {},
    svg({ class: "curve",
      "aria-label": end ? `${name} over steps: ${short(end[1])} at step ${end[0]}` : `${name}: nothing yet` },
      ...steps,
      drawn("polyline", { class: "line", points: points.map(place).join(" ") }),
      end ? drawn("circle", { class: "dot", cx: x(end[0] / last), cy: y(end[1]), r: 4 }) : null),
    element("figcaption", {},
      end ? `${name} ${short(end[1])} at step ${end[0]} of ${last}` : "The curve begins with the first steps."));
}
