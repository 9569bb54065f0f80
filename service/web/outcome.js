// What came of a job, by what it was.

import { auditOf } from "./audit.js";
import { element } from "./dom.js";
import { failure } from "./running.js";
import { thresholdCurve } from "./thresholds.js";

/** What a job's last event says, as elements. */
export function outcomeOf({ status, result, error }) {
  if (status === "failed") return [failure({ status, error })];
  if (status !== "succeeded" || !result) return [];
  if (result.totals) return [auditOf(result)];
  if (result.curve) return calibrated(result);
  if (result.model) return [made(result)];
  return [element("pre", {}, JSON.stringify(result, null, 2))];
}

function made({ model }) {
  return element("p", { class: "notice" }, "Made the model ", element("strong", {}, model), ". ",
    element("a", { href: "#models" }, "See the models"));
}

function calibrated(result) {
  return [
    element("p", { class: "notice" }, "The gallery ", element("strong", {}, result.gallery), " has the threshold ",
      element("strong", {}, result.threshold.toFixed(4)), ". ", element("a", { href: "#gallery" }, "See the gallery")),
    thresholdCurve(result),
  ];
}
