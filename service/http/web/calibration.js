// The gallery's own threshold: what it promises, its curve, and measuring it anew.

import { byId, element, entry } from "./dom.js";
import { count, moment, percent } from "./figures.js";
import { runner } from "./running.js";
import { gallery, offer } from "./service.js";
import { thresholdCurve } from "./thresholds.js";

const TARGETS = [0.1, 0.03, 0.01, 0.003, 0.001];
const USUAL = 0.01;
let offered; // for which gallery and calibration the rates are; reading these again keeps the choice
const runs = runner(byId("calibration-result"), "calibration", (busy) => { byId("calibration-start").disabled = busy; });

/** Make the form work; `changed` is called once the gallery decides by something new. */
export function startCalibration(changed) {
  byId("calibration-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const target = Number(byId("calibration-form").elements.target.value);
    const done = (result) => element("p", { class: "notice", role: "status" },
      `Calibrated: the threshold is ${result.threshold.toFixed(4)}.`);
    if (await runs.run("/jobs/calibrate", { gallery: gallery(), target_fpir: target }, done)) await changed();
  });
}

/** Leave a calibration that is under way to itself. */
export const leaveCalibration = () => runs.leave();

/** Show what the gallery decides by: its own threshold, or none yet (also for no gallery). */
export function showCalibration(found) {
  const point = found?.operating_point;
  const state = `${found?.name} ${point?.calibrated_at}`;
  if (state !== offered) {
    const chosen = point?.target_fpir ?? USUAL;
    const targets = [...new Set([...TARGETS, chosen])].sort((one, other) => other - one);
    offer(byId("calibration-form").elements.target, targets, chosen, percent);
    offered = state;
  }
  byId("calibration").replaceChildren(...(point ? calibrated(point, found) : [element("p", {},
    "Not calibrated: the model’s own threshold decides, which was measured on other people and for another number of them.")]));
}

function calibrated(point, { model, subjects }) {
  const { threshold, interval, confidence, target_fpir, stale } = point;
  const bounds = interval
    ? `, with ${percent(confidence)} confidence between ${interval[0].toFixed(3)} and ${interval[1].toFixed(3)}` : "";
  return [
    stale ? outdated(point, model, subjects) : null,
    element("p", {}, "At most ", element("strong", {}, percent(target_fpir)), " of people who are not enrolled reach a similarity of ",
      element("strong", {}, threshold.toFixed(4)), ` to somebody who is${bounds}.`),
    point.curve.length ? thresholdCurve(point)
      : element("p", { class: "hint" }, "Calibrate again to see what other rates would ask for."),
    element("dl", { class: "facts" },
      entry("Measured on", `${count(point.gallery_subjects, "person", "people")}, ${count(point.gallery_sequences, "walk")}`),
      entry("At", moment(point.calibrated_at))),
  ].filter(Boolean);
}

function outdated(point, model, subjects) {
  const why = point.digest !== model.digest
    ? `The gallery’s model is ${model.name} now, another than the one this was measured with. Until it is calibrated again, the model’s own threshold decides.`
    : `There were ${point.gallery_subjects} people when this was measured, and there are ${subjects} now: more strangers are matched than promised.`;
  return element("div", { class: "notice warm" },
    element("strong", {}, "Out of date"), element("p", {}, `${why} The service calibrates again by itself, or you do it now.`));
}
