// A calibration's curve: which threshold each rate of false matches asks for, as a picture and a table.

import { frame, label } from "./axes.js";
import { drawn, element } from "./dom.js";
import { percent } from "./figures.js";

const LABEL = 44; // of a rate below the chart, with room around it
const METHODS = {
  observed: "seen here",
  extrapolated: "extended from here",
  background: "partly from others",
  carried: "carried over from another model",
};

const figure = (similarity) => similarity.toFixed(3);

/** The curve of an operating point, the rate it decides by marked; in grey where it is `stale`. */
export function thresholdCurve({ curve, target_fpir, stale = false }) {
  const points = [...curve].sort((one, other) => other.target_fpir - one.target_fpir);
  const chosen = points.find((one) => one.target_fpir === target_fpir);
  return element("div", { class: "beside" }, picture(points, chosen, stale), table(points, chosen));
}

function picture(points, chosen, stale) {
  const { x, y, bottom, svg } = frame(points.flatMap(({ threshold, low, high }) =>
    [threshold, low, high].filter((value) => value !== null)));
  const [most, least] = [points[0], points.at(-1)].map((one) => Math.log(one.target_fpir));
  const across = ({ target_fpir: rate }) => x(0.04 + 0.92 * ((most - Math.log(rate)) / (most - least || 1)));
  const places = (those, side) => those.map((one) => `${across(one).toFixed(1)},${y(one[side]).toFixed(1)}`);
  const bounded = points.filter(({ low }) => low !== null);
  const said = points.map((one) => `${figure(one.threshold)} for ${percent(one.target_fpir)}`).join(", ");
  return element("figure", {},
    svg({ class: `curve thresholds${stale ? " stale" : ""}`,
      "aria-label": `Thresholds by the share of strangers matched: ${said}${stale ? "; stale" : ""}` },
      drawn("polygon", { class: "band", points: [...places(bounded, "high"), ...places(bounded, "low").reverse()].join(" ") }),
      ...legible(points, chosen, across).map((one) => label(across(one), percent(one.target_fpir),
        { class: one === chosen ? "chosen" : null })),
      chosen ? drawn("path", { class: "guide", d: `M${x(0)},${y(chosen.threshold)}H${across(chosen)}V${bottom}` }) : null,
      drawn("polyline", { class: "line", points: places(points, "threshold").join(" ") }),
      ...points.map((one) => drawn("circle", { class: one === chosen ? "dot chosen" : `dot ${one.method}`,
        cx: across(one), cy: y(one.threshold), r: one === chosen ? 7 : 4.5 },
      drawn("title", {}, `${percent(one.target_fpir)}: ${figure(one.threshold)}, ${METHODS[one.method]}`)))),
    element("figcaption", {}, "The similarity that is asked for (upright), by the share of strangers who may be matched. ",
      bounded.length ? "The band holds it with 95 % confidence. " : "",
      chosen ? "The large dot decides here. " : "",
      points.some(({ method }) => method === "background")
        ? "Where dots are hollow, too few people are enrolled, and those that the model was measured on count as well." : ""));
}

/** The same in numbers. */
function table(points, chosen) {
  const columns = ["Strangers", "Threshold", "95 % interval", "Found"];
  return element("div", { class: "wide" }, element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...points.map((one) => element("tr", { "aria-current": one === chosen },
      element("th", { scope: "row" }, percent(one.target_fpir)),
      element("td", {}, figure(one.threshold)),
      element("td", {}, one.low === null ? "–" : `${figure(one.low)} – ${figure(one.high)}`),
      element("td", {}, METHODS[one.method]))))));
}

/** The points whose rates can be written below the chart without touching; the chosen one first. */
function legible(points, chosen, across) {
  const written = chosen ? [chosen] : [];
  for (const one of points) {
    if (written.every((other) => Math.abs(across(other) - across(one)) >= LABEL)) written.push(one);
  }
  return written;
}
