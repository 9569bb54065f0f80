// Errors, said so that a person knows what to do.

import { Problem } from "./api.js";
import { element } from "./dom.js";

const CODES = {
  too_few_frames: "too few usable frames: film a longer walk, at least one full stride",
  empty_frames: "frames without a person: check the segmentation",
  touches_border: "the person is cut off at the edge: keep the whole body in the picture",
  not_a_person_shape: "the shape is not that of a walking person: check the segmentation",
  area_jumps: "the shape jumps from frame to frame: check the segmentation",
  no_gait_cycle: "no step is seen: film a person who walks",
  low_resolution: "the person is small in the picture: film from nearer, or with more pixels",
  several_people: "more than one person is there: send frames with one person in them; footage alone, to choose who is meant",
  no_walker: "nobody walks in full view: film somebody from head to feet for a few seconds",
  several_walks: "more than one walk is there: send each in a file of its own",
  cut_off: "a border of the picture cuts the person: keep the whole body in the picture",
  inverted: "the person was black on white, and was turned round: send white on black",
  upside_down: "the person may be upside down or lie on the side: send upright frames",
  frame_rate: "frames repeat, or are far more than 25 a second: send the camera's frames, each once",
  stands: "the person stands for a part of it: send the part in which they walk",
  scope_missing: "the key lacks the scope for this",
};

/** What a code of the service means, for a person. */
export const inWords = (code) => CODES[code] ?? code.replaceAll("_", " ");

/** A notice about an error; one of the page's own is said to be that. */
export function problemNotice(error) {
  if (!(error instanceof Problem)) {
    console.error(error);
    error = new Problem({
      title: "The page could not do this",
      detail: `${error.message || error}. Reload the page and try again.`,
    });
  }
  const reasons = error.errors
    .filter(({ where, reason }) => !(error.detail.includes(where) && error.detail.includes(reason)))
    .map(({ where, reason }) => element("li", {}, element("code", {}, where), ": ", inWords(reason)));
  return element("div", { class: "notice bad", role: "alert" },
    element("strong", {}, error.title),
    element("p", {}, error.detail),
    reasons.length ? element("ul", {}, ...reasons) : null,
    error.retryAfter ? element("p", {}, `Try again in ${error.retryAfter} seconds.`) : null);
}

/** Do something into a place; an error becomes a notice there. Returns whether it went well. */
export async function showing(place, work) {
  place.setAttribute("aria-busy", "true");
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    place.replaceChildren(problemNotice(error));
    return false;
  } finally {
    place.removeAttribute("aria-busy");
  }
}
