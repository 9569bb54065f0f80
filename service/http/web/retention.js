// How long a gallery keeps its walks.

import { call, path } from "./api.js";
import { announce, byId, confirmed } from "./dom.js";
import { count } from "./figures.js";
import { showing } from "./problem.js";
import { gallery, knownGalleries } from "./service.js";

const known = () => knownGalleries().find((one) => one.name === gallery());

/** Make the form work; `changed` is called once another age holds. */
export function startRetention(changed) {
  const form = byId("retention-form");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const days = form.elements.days.value ? Number(form.elements.days.value) : null;
    const before = known()?.max_age_days ?? Infinity;
    if (days !== null && days < before && !(await confirmed(
      `Keep walks for ${count(days, "day")} only?`,
      `Walks that were enrolled in ${gallery()} longer ago are erased soon, and cannot be brought back.`,
      "Erase what is older"))) return;
    await showing(byId("retention-problem"), async () => {
      await call("PATCH", path`/galleries/${gallery()}`, { json: { max_age_days: days } });
      byId("retention-problem").replaceChildren();
      announce(`Walks are kept ${keptFor(days)}`);
      await changed();
    });
  });
}

/** Fill in the age that holds. */
export function showRetention(found) {
  byId("retention-form").elements.days.value = found?.max_age_days ?? "";
  byId("retention-problem").replaceChildren();
}

/** How long walks are kept, in words. */
export const keptFor = (days) => (days === null ? "until somebody erases them" : `for ${count(days, "day")}`);
