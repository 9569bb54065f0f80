// Footage with its people drawn over it: masks, boxes, numbers. It plays, and a click says who.

import { element } from "./dom.js";

const WAIT_MS = 10_000;
const HOLDS_S = 0.25; // an outline, until the next one of the same walk
const COLOURS = ["#4cc9f0", "#ffb703", "#a7e34b", "#ff70a6", "#c8a2ff", "#ff8c42", "#f2f2f2", "#5ff0c0"];

/** A person's colour, by their place among the tracks. */
export const colourOf = (index) => COLOURS[index % COLOURS.length];

/**
 * The film of a file with the people of `tracks` drawn in: `{node, show(index)}`, which stops where
 * that person's walk begins. `picked(index)` is told who was clicked. Rejects where this browser
 * does not play the file.
 */
export async function filmOf(file, tracks, picked) {
  const film = element("video", { preload: "auto", playsinline: true });
  film.muted = film.loop = true;
  film.src = URL.createObjectURL(file); // in use for as long as the film is on the page
  try {
    await happens(film, "loadeddata");
  } catch (error) {
    URL.revokeObjectURL(film.src);
    throw error;
  }
  const canvas = element("canvas", { width: film.videoWidth, height: film.videoHeight, role: "img", "aria-label": "The footage" });
  const context = canvas.getContext("2d");
  canvas.style.setProperty("--ratio", film.videoWidth / film.videoHeight);
  const slider = element("input", { type: "range", min: 0, max: film.duration, step: 0.04, value: 0, "aria-label": "Time in the footage" });
  const counter = element("span", { class: "counter" });
  const button = element("button", { type: "button", class: "quiet", "aria-label": "Play the footage" }, "Play");
  let shown = 0;
  let outlines = [];

  const draw = () => {
    const now = film.currentTime;
    context.drawImage(film, 0, 0);
    outlines = tracks.map((track) => outlineAt(track, now));
    outlines.forEach((outline, index) => outline && drawPerson(context, outline, index, index === shown));
    const there = outlines.flatMap((outline, index) => (outline ? [`person ${index + 1}`] : []));
    canvas.setAttribute("aria-label", `The footage at ${now.toFixed(1)} s: ${there.join(", ") || "nobody walks"}`);
    slider.value = now;
    slider.setAttribute("aria-valuetext", `${now.toFixed(1)} s, ${there.join(", ") || "nobody walks"}`);
    counter.textContent = `${now.toFixed(1)} / ${film.duration.toFixed(1)} s`;
  };
  const tick = () => {
    if (film.paused) return;
    if (!canvas.isConnected) return film.pause();
    draw();
    return requestAnimationFrame(tick);
  };
  const told = () => {
    button.textContent = film.paused ? "Play" : "Pause";
    button.setAttribute("aria-label", `${button.textContent} the footage`);
    if (!film.paused) requestAnimationFrame(tick);
  };
  const seek = (seconds) => {
    film.pause();
    film.currentTime = Math.min(seconds + 0.001, film.duration); // not the picture before it
  };
  film.addEventListener("seeked", draw);
  film.addEventListener("play", told);
  film.addEventListener("pause", told);
  button.addEventListener("click", () => (film.paused ? film.play() : film.pause()));
  slider.addEventListener("input", () => seek(Number(slider.value)));
  canvas.addEventListener("click", (event) => {
    const { left, top, width } = canvas.getBoundingClientRect();
    const scale = canvas.width / width;
    const at = [(event.clientX - left) * scale, (event.clientY - top) * scale];
    const hit = outlines.findIndex((outline) => outline && context.isPointInPath(boxOf(outline), ...at));
    if (hit < 0) return;
    shown = hit;
    draw();
    picked(hit);
  });
  const show = (index) => {
    shown = index;
    seek(tracks[index].from_s);
  };
  show(0);
  const node = element("div", { class: "player footage" }, canvas, element("div", { class: "controls" }, button, slider, counter));
  return { node, show };
}

/** Where the person is by what was seen last, or undefined when they do not walk then. */
function outlineAt({ outlines }, now) {
  const last = outlines.findLast(({ at_s }) => at_s <= now + 0.002);
  return last && now - last.at_s < HOLDS_S ? last : undefined;
}

function drawPerson(context, outline, index, shown) {
  const thick = Math.max(1, context.canvas.width / 320);
  const box = boxOf(outline);
  const mask = shapeOf(outline);
  context.lineJoin = "round";
  context.fillStyle = context.strokeStyle = colourOf(index);
  context.globalAlpha = 0.45;
  context.fill(mask);
  context.globalAlpha = 1;
  context.lineWidth = thick;
  context.stroke(mask);
  for (const [colour, wide] of [["black", (shown ? 5 : 3) * thick], [colourOf(index), (shown ? 3 : 1) * thick]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.stroke(box);
  }
  const [left, top] = edgesOf(outline);
  const size = Math.max(12, context.canvas.width / 28);
  const name = String(index + 1);
  context.font = `bold ${size}px sans-serif`;
  const wide = context.measureText(name).width + 0.5 * size;
  const [x, y] = [Math.max(0, left), Math.max(0, top - 1.2 * size)];
  context.fillStyle = colourOf(index);
  context.fillRect(x, y, wide, 1.2 * size);
  context.fillStyle = "black";
  context.textBaseline = "middle";
  context.fillText(name, x + 0.25 * size, y + 0.62 * size);
}

function shapeOf({ points }) {
  const shape = new Path2D();
  for (let i = 0; i < points.length; i += 2) shape.lineTo(points[i], points[i + 1]);
  shape.closePath();
  return shape;
}

function boxOf(outline) {
  const [left, top, right, bottom] = edgesOf(outline);
  const box = new Path2D();
  box.rect(left, top, right - left, bottom - top);
  return box;
}

function edgesOf({ points }) {
  const columns = points.filter((_, i) => i % 2 === 0);
  const rows = points.filter((_, i) => i % 2 === 1);
  return [Math.min(...columns), Math.min(...rows), Math.max(...columns), Math.max(...rows)];
}

/** Wait for an event of a film; throws if it cannot be played, or takes too long. */
function happens(film, kind) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error("too slow")), WAIT_MS);
    film.addEventListener(kind, () => { clearTimeout(late); resolve(); }, { once: true });
    film.addEventListener("error", () => { clearTimeout(late); reject(new Error("not played")); }, { once: true });
  });
}
