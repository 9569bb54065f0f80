// What came of a job, by what it was.

import { activated } from "./activation.js";
import { auditOf } from "./audit.js";
import { comparisonOf } from "./comparison.js";
import { element } from "./dom.js";
import { failure } from "./running.js";
import { at } from "./service.js";
import { footageOf } from "./timeline.js";
import { thresholdCurve } from "./thresholds.js";

const SHOWN = {
  activate: (result) => [activated(result)],
  "audit-gallery": (result) => [auditOf(result)],
  calibrate: calibrated,
  distill: (result) => ("better" in result ? judged(result) : [made(result)]),
  footage: footageOf,
  rollback: (result) => [activated(result)],
};

/** How a job of a type has ended, as elements. */
export function outcomeOf(type, { status, result, error }) {
  if (status === "failed") return [failure({ status, error })];
  if (status !== "succeeded" || !result) return [];
  return SHOWN[type]?.(result) ?? [element("pre", {}, JSON.stringify(result, null, 2))];
}

function made({ model }) {
  return element("p", { class: "notice" }, "Made the model ", element("strong", {}, model), ". ",
    element("a", { href: "#models" }, "See the models"));
}

/** A new model that was to be activated if it is better. */
function judged({ model, gallery, better, reason, against, comparison, activation }) {
  return [
    made({ model }),
    element("div", { class: better ? "notice" : "notice warm" },
      element("strong", {}, better ? "It is better" : "It is not activated"),
      element("p", {}, `In the gallery ${gallery}: ${reason}.`),
      activation ? element("a", { href: at("jobs", activation) }, "Watch its activation") : null),
    ...(comparison ? [comparisonOf(comparison, model, against.name)] : []),
  ];
}

function calibrated(result) {
  return [
    element("p", { class: "notice" }, "The gallery ", element("strong", {}, result.gallery), " has the threshold ",
      element("strong", {}, result.threshold.toFixed(4)), ". ", element("a", { href: "#gallery" }, "See the gallery")),
    thresholdCurve(result),
  ];
}
