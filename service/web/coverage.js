// In which views and conditions a subject is enrolled, and what is missing.

import { element } from "./dom.js";

const ADVICE = {
  another_sequence: "Enrol another walk: with one alone, every bad frame counts.",
  another_view: "Enrol a walk in another view: between views people are told apart less well.",
  name_the_view: "Say the view with each walk, so that missing ones can be named.",
};

/** What a subject's coverage says, or nothing where all is well and nothing is labelled. */
export function coverageOf({ sequences, views, conditions, missing_views, missing_conditions, advice }) {
  const walks = sequences === 1 ? "1 walk" : `${sequences} walks`;
  const have = [views.length ? `views ${views.join(", ")}` : null,
    conditions.length ? `conditions ${conditions.join(", ")}` : null].filter(Boolean);
  const missing = [
    missing_views.length ? `Others here are enrolled in the views ${missing_views.join(", ")}, too.` : null,
    missing_conditions.length ? `Others here are enrolled in the conditions ${missing_conditions.join(", ")}, too.` : null,
  ];
  const remarks = [...advice.map((code) => ADVICE[code] ?? code), ...missing].filter(Boolean);
  return element("div", { class: "coverage" },
    element("p", {}, `Covered: ${[walks, ...have].join("; ")}.`),
    remarks.length ? element("ul", {}, ...remarks.map((remark) => element("li", {}, remark))) : null);
}
