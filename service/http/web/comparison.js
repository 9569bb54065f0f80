// Two models on the same searches of a gallery: how often each is right first, and how often alike.

import { drawn, element, entry } from "./dom.js";
import { count, percent, short } from "./figures.js";

const signs = { "-1": "−", 0: "", 1: "+" };
const points = (difference) => `${signs[Math.sign(difference)]}${Math.abs(100 * difference).toFixed(1)}`;

/** What comparing the model `name` with `before` came to; `compared` is null where nobody could be asked. */
export function comparisonOf(compared, name, before) {
  if (!compared) return element("p", { class: "hint" }, "Nobody in this gallery has two walks, so the models could not be compared.");
  const { rank1_new, rank1_old, difference, interval: [low, high], agreement } = compared;
  return element("figure", { class: "comparison" },
    element("figcaption", {}, `Right at the first answer, on ${count(compared.searches, "walk")} of ` +
      `${count(compared.subjects, "person", "people")} searched among all others:`),
    share(name, rank1_new), share(before, rank1_old),
    element("dl", { class: "facts" },
      entry("Difference", `${points(difference)} points, ${verdict(low, high)}`),
      entry("With 95 % confidence", `${points(low)} to ${points(high)}`),
      entry("Same first answer", percent(agreement))));
}

/** Figures that both models’ cards have of the same evaluations; nothing where there are none. */
export function figuresOf({ new: ours, previous }, name, before) {
  const rows = Object.entries(ours).flatMap(([evaluation, found]) =>
    Object.entries(Object(found)).filter(([figure]) => previous[evaluation]?.[figure])
      .map(([figure, [value]]) => [evaluation, figure, value, previous[evaluation][figure][0]]));
  if (!rows.length) return null;
  return element("details", {}, element("summary", {}, "On the models’ own evaluations"),
    element("div", { class: "wide" }, element("table", {},
      element("thead", {}, element("tr", {},
        ...["Evaluation", "Figure", name, before].map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows.map(([evaluation, figure, ...values]) => element("tr", {},
        element("th", { scope: "row" }, evaluation), element("td", {}, figure),
        ...values.map((value) => element("td", {}, short(value)))))))));
}

function verdict(low, high) {
  if (low > 0) return "better";
  return high < 0 ? "worse" : "not shown to differ";
}

function share(name, rate) {
  return element("div", { class: "share" }, element("span", {}, name),
    drawn("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "bar-chart", "aria-hidden": "true" },
      drawn("rect", { class: "track", width: 100, height: 10 }),
      drawn("rect", { class: "reached", width: 100 * rate, height: 10 })),
    element("span", { class: "figure" }, percent(rate)));
}
