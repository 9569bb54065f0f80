// Walks that may be another subject's: why an enrolment was refused, and how to enrol all the same.

import { element } from "./dom.js";
import { energyImage } from "./evidence.js";

const figure = (similarity) => (similarity === null ? "nothing to compare with" : similarity.toFixed(3));

/** A notice about a refused enrolment, with a button that enrols anyway. */
export function conflictNotice(problem, enrolAnyway) {
  const button = element("button", { type: "button", class: "danger", onclick: async () => {
    button.disabled = true; // until the answer takes the notice's place
    await enrolAnyway();
  } }, "Enrol anyway");
  return element("div", { class: "notice bad conflict", role: "alert" },
    element("strong", {}, "This may be another person’s walk"),
    element("p", {}, "Nothing was enrolled. A walk under the wrong name spoils every later search."),
    conflictList(problem.conflicts),
    problem.threshold === null ? null
      : element("p", { class: "hint" }, `From a similarity of ${problem.threshold.toFixed(3)} on, two walks count as one person’s.`),
    button);
}

/** Each conflicting walk: what it resembles, and what it was to be. */
export function conflictList(conflicts) {
  return element("ul", { class: "conflicts" }, ...conflicts.map(({ where, reason, own, other }) =>
    element("li", {},
      other.sequence_id ? energyImage(other.sequence_id, `Gait energy image of ${other.subject_id}`) : null,
      element("div", {},
        element("p", {}, element("code", {}, where), reason === "same_walk" ? " is enrolled already as " : " resembles ",
          element("strong", {}, other.subject_id), "."),
        element("p", { class: "hint" },
          `Similarity to ${other.subject_id}: ${figure(other.similarity)}; to ${own.subject_id}: ${figure(own.similarity)}.`)))));
}
