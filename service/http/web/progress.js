// How far a job is: a bar, the curve of one metric, and the figures of evaluations.

import { frame, label, ticks } from "./axes.js";
import { drawn, element } from "./dom.js";
import { short } from "./figures.js";
import { offer } from "./service.js";

/**
 * A chart that takes a job's events as they come: `{node, take(event)}`. `steps(step, total)` says
 * how far it is.
 */
export function chartOf(steps = (step, total) => (total ? `step ${step} of ${total}` : `step ${step}`)) {
  const curves = new Map(); // of points [step, value], by metric
  let total = null;
  let chosen = null;
  let due = false;
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Progress of the job" });
  const left = element("span", { class: "hint" });
  const select = element("select", { onchange: () => { chosen = select.value; draw(); } });
  const choice = element("label", { hidden: true }, "Curve ", select);
  const picture = element("div");
  const figures = element("dl", { class: "facts" });
  const node = element("div", { class: "progress" },
    element("div", { class: "row" }, bar, left), choice, picture, figures);

  const draw = () => {
    due = false;
    const names = [...curves.keys()];
    chosen ??= names.includes("loss") ? "loss" : names[0];
    if (names.length !== select.options.length) offer(select, names, chosen);
    choice.hidden = names.length < 2;
    if (chosen) picture.replaceChildren(curve(chosen, curves.get(chosen), total));
  };
  const advance = ({ step, total_steps, eta_s }) => {
    total = total_steps ?? total;
    if (total) bar.value = step / total;
    const eta = eta_s ? `, about ${duration(eta_s)} left` : "";
    left.textContent = `${steps(step, total)}${total ? eta : ""}`;
  };
  const take = (event) => {
    const metrics = numbers(event.data.metrics);
    if (event.kind === "start") advance(event.data);
    if (event.kind === "progress") {
      advance(event.data);
      for (const [name, value] of metrics) {
        const points = curves.get(name) ?? [];
        // A run that resumed does some steps again.
        curves.set(name, [...points.filter(([step]) => step < event.data.step), [event.data.step, value]]);
      }
      if (!due) requestAnimationFrame(draw); // many events may come at once
      due = true;
    }
    if (event.kind === "status" && event.data.status === "succeeded") {
      bar.value = 1;
      left.textContent = "done";
    }
    if (event.kind === "evaluation" || (event.kind === "status" && metrics.length)) {
      figures.replaceChildren(...figuresOf(metrics));
    }
  };
  return { node, take };
}

/** Metrics as entries of a `<dl>`. */
export function figuresOf(metrics) {
  return metrics.map(([name, value]) =>
    element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, short(value))));
}

/** The metrics that are numbers, as `[name, value]`. */
export const numbers = (metrics) =>
  Object.entries(metrics ?? {}).filter(([, value]) => Number.isFinite(value));

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** A curve of points `[step, value]` up to `total` steps. */
function curve(name, points, total) {
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
