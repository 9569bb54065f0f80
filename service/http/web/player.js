// Plays silhouettes: a canvas, a pause button, a slider over the frames.

import { bytes, path } from "./api.js";
import { element } from "./dom.js";
import { problemNotice } from "./problem.js";
import { frames } from "./walk.js";

const FRAME_MS = 40;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** A player of frames `{width, height, grey}`; it stops when it leaves the page. */
export function player(film, label) {
  const width = Math.max(...film.map((frame) => frame.width));
  const height = Math.max(...film.map((frame) => frame.height));
  const canvas = element("canvas", { width, height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const slider = element("input", {
    type: "range", min: 0, max: film.length - 1, value: 0, "aria-label": `Frame of ${label}`,
  });
  const counter = element("span", { class: "counter" });
  const button = element("button", { type: "button", class: "quiet", onclick: () => run(!playing) });
  let playing = false;
  let due = 0;

  const show = (index) => {
    const frame = film[index];
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    const left = Math.floor((width - frame.width) / 2);
    context.putImageData(picture(frame), left, height - frame.height);
    slider.value = index;
    counter.textContent = `${index + 1} / ${film.length}`;
  };
  const run = (on) => {
    playing = on;
    button.textContent = on ? "Pause" : "Play";
    button.setAttribute("aria-label", `${on ? "Pause" : "Play"} ${label}`);
    if (on) requestAnimationFrame(tick);
  };
  const tick = (now) => {
    if (!playing || (due > 0 && !canvas.isConnected)) return;
    if (now >= due) {
      due = now + FRAME_MS;
      show((Number(slider.value) + 1) % film.length);
    }
    requestAnimationFrame(tick);
  };
  slider.addEventListener("input", () => {
    run(false);
    show(Number(slider.value));
  });
  show(0);
  run(!still.matches);
  return element("div", { class: "player" }, canvas,
    element("div", { class: "controls" }, button, slider, counter));
}

/** A player of an enrolled sequence, or the notice that says why there is none. */
export async function sequencePlayer(sequenceId, label) {
  try {
    const data = await bytes(path`/sequences/${sequenceId}/silhouettes.npz`);
    return player(await frames(data), label);
  } catch (error) {
    return problemNotice(error);
  }
}

function picture({ width, height, grey }) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = 0xff000000 | (grey[i] * 0x010101);
  return image;
}
