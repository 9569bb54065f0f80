// In which views and conditions a subject is enrolled, and what is missing.

import { element } from "./dom.js";

const ADVICE = {
  another_sequence: "Enrol another walk: with one alone, every bad frame counts.",
  another_view: "Enrol a walk in another view: between views people are told apart less well.",
  name_the_view: "Say the view with each walk, so that missing ones can be named: of one that is enrolled under “Correct”, in the gallery.",
};

/** What a subject's coverage says, and what to enrol next. */
export function coverageOf({ sequences, views, conditions, missing_views, missing_conditions, advice }) {
  const walks = sequences === 1 ? "1 walk" : `${sequences} walks`;
  const have = [views.length ? `views ${views.join(", ")}` : null,
    conditions.length ? `conditions ${conditions.join(", ")}` : null].filter(Boolean);
  const missing = [
    missing_views.length ? `Others here also have views: ${missing_views.join(", ")}.` : null,
    missing_conditions.length ? `Others here also have conditions: ${missing_conditions.join(", ")}.` : null,
  ];
  const remarks = [...advice.map((code) => ADVICE[code] ?? code), ...missing].filter(Boolean);
  return element("div", { class: "coverage" },
    element("p", {}, `Covered: ${[walks, ...have].join("; ")}.`),
    remarks.length ? element("ul", {}, ...remarks.map((remark) => element("li", {}, remark))) : null);
}
