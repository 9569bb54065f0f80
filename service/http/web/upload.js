// A place to drop walks on, or to choose them, and to watch them before they are sent.

import { element } from "./dom.js";
import { player } from "./player.js";
import { frames } from "./walk.js";

const MOST_PREVIEWS = 4;

/** Watch a file input and the place around it; previews of what was chosen go to `preview`. */
export function watchUploads(input, place, preview) {
  for (const kind of ["dragenter", "dragover"]) {
    place.addEventListener(kind, () => place.classList.add("over"));
  }
  for (const kind of ["dragleave", "drop"]) {
    place.addEventListener(kind, () => place.classList.remove("over"));
  }
  place.addEventListener("drop", (event) => {
    const dropped = [...event.dataTransfer.files].slice(0, input.multiple ? undefined : 1);
    if (!dropped.length) return;
    const transfer = new DataTransfer();
    dropped.forEach((file) => transfer.items.add(file));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change"));
  });
  input.addEventListener("change", async () => {
    const files = [...input.files];
    const pictures = await Promise.all(files.slice(0, MOST_PREVIEWS).map(picture));
    if (files.length === input.files.length && files.every((file, i) => file === input.files[i])) {
      const rest = files.length - pictures.length;
      preview.replaceChildren(...pictures, rest > 0 ? `and ${rest} more` : "");
    }
  });
}

/** The file as it plays here, or its name and why it does not. */
async function picture(file) {
  let shown;
  try {
    shown = await played(file);
  } catch (error) {
    shown = element("p", { class: "hint" }, `It cannot be played: ${error.message}.`);
  }
  return element("figure", {}, shown, element("figcaption", {}, file.name));
}

async function played(file) {
  if (/^image\/(gif|webp|png)$/.test(file.type)) {
    const image = element("img", { alt: `Preview of ${file.name}` });
    await shownFrom(file, image, () => image.decode());
    return image;
  }
  if (/^video\/(mp4|webm)$/.test(file.type)) {
    const film = element("video", { controls: true, loop: true, "aria-label": file.name });
    film.muted = true;
    film.src = URL.createObjectURL(file); // in use for as long as the film is on the page
    return film;
  }
  const found = await frames(new Uint8Array(await file.arrayBuffer()));
  return found
    ? player(found, `the walk ${file.name}`)
    : element("p", { class: "hint" }, "This kind of file is not played here; the service says whether it is a walk.");
}

async function shownFrom(file, image, loaded) {
  image.src = URL.createObjectURL(file);
  try {
    await loaded();
  } finally {
    URL.revokeObjectURL(image.src);
  }
}
