// Footage with several people in it: who they are, when they walk, and which of them is meant.

import { announce, element } from "./dom.js";

const SEEK_MS = 10_000;

/** Whether an error says that several people walk, and lists them. */
export const areSeveral = (error) => error.type?.endsWith("/several-people") && error.tracks?.length > 0;

/** Seconds of a clip, for a person. */
export const span = (from, to) => `${from.toFixed(1)} to ${to.toFixed(1)} s`;

/**
 * A card of everybody in a clip; `choose(track)` is called with the one who is picked. `file` is
 * the clip, from which the scene is shown where this browser plays it.
 */
export function peopleOf({ title, tracks }, file, choose) {
  announce(`${title}: choose one of ${tracks.length}`);
  const buttons = [];
  const list = element("ul", { class: "people" }, ...tracks.map((one, index) => {
    const name = `Person ${index + 1}`;
    const button = element("button", { type: "button", "aria-label": `Choose ${name.toLowerCase()}`, onclick: async () => {
      buttons.forEach((each) => { each.disabled = true; }); // until the answer takes their place
      await choose(one.track);
    } }, "Choose");
    buttons.push(button);
    return element("li", {}, thumbnail(one, name),
      element("div", {}, element("h3", {}, name), element("p", { class: "hint" }, span(one.from_s, one.to_s)), button));
  }));
  const scene = element("div", { class: "scenes" });
  drawScenes(scene, file, tracks);
  return element("div", { class: "card decision" },
    element("p", { class: "verdict" }, "Several people"),
    element("h2", {}, `${tracks.length} people walk in this footage`),
    element("p", {}, "Choose the one who is meant. Nothing was stored."),
    list, scene);
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

/** The picture in which each person's walk begins, with a box around them. */
async function drawScenes(place, file, tracks) {
  const film = element("video", { preload: "auto" });
  film.muted = true;
  film.src = URL.createObjectURL(file);
  try {
    await happens(film, "loadeddata");
    for (const [index, track] of tracks.entries()) {
      film.currentTime = Math.min(track.from_s + 0.001, film.duration); // not the picture before it
      await happens(film, "seeked");
      place.append(scene(film, track, `Person ${index + 1}`));
    }
  } catch {
    place.replaceChildren(element("p", { class: "hint" }, "This browser does not play the footage, so it shows no scene."));
  } finally {
    URL.revokeObjectURL(film.src);
  }
}

function scene(film, { box: [left, top, width, height], from_s }, name) {
  const canvas = element("canvas", { width: film.videoWidth, height: film.videoHeight, role: "img",
    "aria-label": `${name} where the walk begins` });
  const context = canvas.getContext("2d");
  context.drawImage(film, 0, 0);
  const thick = Math.max(2, Math.round(film.videoWidth / 160));
  for (const [colour, wide] of [["black", 2 * thick], ["white", thick]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.strokeRect(left, top, width, height);
  }
  return element("figure", {}, canvas, element("figcaption", {}, `${name}, at ${from_s.toFixed(1)} s`));
}

/** Wait for an event of a film; throws if it cannot be played, or takes too long. */
function happens(film, kind) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error("too slow")), SEEK_MS);
    film.addEventListener(kind, () => { clearTimeout(late); resolve(); }, { once: true });
    film.addEventListener("error", () => { clearTimeout(late); reject(new Error("not played")); }, { once: true });
  });
}
