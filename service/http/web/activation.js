// The model that the chosen gallery is searched with: another one put into service, and back again.

import { call, path } from "./api.js";
import { comparisonOf, figuresOf } from "./comparison.js";
import { announce, bringIntoView, byId, element } from "./dom.js";
import { problemNotice } from "./problem.js";
import { runner } from "./running.js";
import { gallery, knownGalleries } from "./service.js";

const place = byId("activation-result");
const runs = runner(place, "activation", (busy) => {
  for (const button of document.querySelectorAll("#models .changes-model")) button.disabled = busy;
});
let changed;

/** Learn what to do once a gallery has another model. */
export function startActivation(whenChanged) {
  changed = whenChanged;
}

/** Leave an activation that is under way to itself, and show none. */
export const leaveActivation = () => runs.leave();

/** Give the chosen gallery a model, and show how it compares with the one before. */
export async function activate(name) {
  bringIntoView(byId("models-title"));
  if (await runs.run(path`/models/${name}/activate`, { gallery: gallery() }, activated)) await changed();
}

/** Which model the chosen gallery has, and the way back to the one before. */
export function activeModel() {
  const found = knownGalleries().find((one) => one.name === gallery());
  if (!found) return element("p", { class: "hint" }, "This gallery is created with the first walk enrolled in it.");
  const { model, previous_model: before } = found;
  return element("div", { class: "card heading" },
    element("p", {}, "The gallery ", element("strong", {}, found.name), " is searched with ", element("strong", {}, model.name), "."),
    before ? element("button", { type: "button", class: "changes-model", onclick: rollBack }, `Go back to ${before.name}`) : null);
}

/** What an activation, or going back, came to. */
export function activated(result) {
  const { model, previous, comparison, figures } = result;
  return element("div", { class: "card notice" },
    element("p", {}, "The gallery ", element("strong", {}, result.gallery), " now uses ", element("strong", {}, model),
      ` instead of ${previous.name}.`),
    comparison === undefined ? null : comparisonOf(comparison, model, previous.name),
    figures ? figuresOf(figures, model, previous.name) : null);
}

/** It is done with the answer, so there is nothing to wait for. */
async function rollBack({ target }) {
  target.disabled = true;
  runs.leave();
  try {
    const { result } = await call("POST", "/models/rollback", { json: { gallery: gallery() } });
    await changed();
    place.replaceChildren(activated(result));
    announce(`Back to ${result.model}`);
  } catch (error) {
    place.replaceChildren(problemNotice(error));
    target.disabled = false;
  }
}
