// Footage with several people in it: who they are, when they walk, and which of them is meant.

import { announce, element } from "./dom.js";
import { colourOf, filmOf } from "./film.js";

/** Whether an error says that several people walk, and lists them. */
export const areSeveral = (error) => error.type?.endsWith("/several-people") && error.tracks?.length > 0;

/** Seconds of a clip, for a person. */
export const span = (from, to) => `${from.toFixed(1)} to ${to.toFixed(1)} s`;

/**
 * A card of everybody in a clip; `choose(track)` is called with the one who is picked. `file` is
 * the clip, which is shown with its people drawn in where this browser plays it.
 */
export function peopleOf({ title, tracks }, file, choose) {
  announce(`${title}: choose one of ${tracks.length}`);
  const people = tracks.map((one, index) => personOf(one, index, async () => {
    people.forEach(({ chosen }) => { chosen.disabled = true; }); // until the answer takes their place
    await choose(one.track);
  }));
  const place = element("div", { class: "scene" });
  shownIn(place, file, tracks, people);
  return element("div", { class: "card decision" },
    element("p", { class: "verdict" }, "Several people"),
    element("h2", {}, `${tracks.length} people walk in this footage`),
    element("p", {}, "Choose the one who is meant. Nothing was stored."),
    place, element("ul", { class: "people" }, ...people.map(({ node }) => node)));
}

function personOf(track, index, choose) {
  const name = `Person ${index + 1}`;
  const chosen = element("button", { type: "button", "aria-label": `Choose ${name.toLowerCase()}`, onclick: choose }, "Choose");
  const look = element("button", { type: "button", class: "quiet", hidden: true, "aria-label": `Show ${name.toLowerCase()} in the footage` }, "Show");
  const picture = thumbnail(track, name);
  picture.style.setProperty("--person", colourOf(index));
  const node = element("li", {}, picture,
    element("div", {}, element("h3", {}, name), element("p", { class: "hint" }, span(track.from_s, track.to_s)),
      element("p", { class: "row" }, chosen, look)));
  return { node, chosen, look };
}

/** Put the film into its place; who is looked for, or clicked, is marked in the list. */
async function shownIn(place, file, tracks, people) {
  const mark = (index) => people.forEach(({ node }, each) => {
    if (each === index) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
  });
  try {
    const film = await filmOf(file, tracks, (index) => {
      mark(index);
      people[index].chosen.focus();
    });
    people.forEach(({ look }, index) => {
      look.hidden = false;
      look.addEventListener("click", () => { mark(index); film.show(index); });
    });
    mark(0);
    place.append(film.node);
  } catch {
    place.append(element("p", { class: "hint" }, "This browser does not play the footage, so it shows no scene."));
  }
}

function thumbnail({ thumbnail }, name) {
  const image = element("img", { class: "thumbnail", alt: `${name} in the footage` });
  image.src = URL.createObjectURL(jpegOf(thumbnail)); // the page's policy allows no data: images
  image.decode().catch(() => { image.alt = "The picture cannot be shown"; })
    .finally(() => URL.revokeObjectURL(image.src));
  return image;
}

function jpegOf(dataUrl) {
  const bytes = Uint8Array.from(atob(dataUrl.split(",", 2)[1]), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/jpeg" });
}
