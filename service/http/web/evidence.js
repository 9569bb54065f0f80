// Similarities as pictures: a bar with the threshold on it, and the parts of a body head to feet.

import { path, showImage } from "./api.js";
import { drawn, element, whenSeen } from "./dom.js";

const IMAGE = { width: 88, height: 128 }; // twice the energy image's 44 × 64
const BARS = 104;
const GAP = 10;

const share = (similarity) => Math.min(1, Math.max(0, similarity));
const figure = (similarity) => similarity.toFixed(3);

/** A bar of a similarity, with a mark where the threshold is; the numbers stand beside it. */
export function similarityBar(similarity, threshold) {
  const reached = similarity >= threshold;
  const bar = drawn("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "bar-chart", "aria-hidden": "true" },
    drawn("rect", { class: "track", width: 100, height: 10 }),
    drawn("rect", { class: reached ? "reached" : "missed", width: 100 * share(similarity), height: 10 }),
    drawn("line", { class: "mark", x1: 100 * share(threshold), x2: 100 * share(threshold), y1: 0, y2: 10 }));
  return element("div", { class: "similarity" }, bar,
    element("span", { class: "figure" }, figure(similarity)));
}

/** An energy image of an enrolled sequence; nothing is seen of it until it has come. */
export function energyImage(sequenceId, alt) {
  const image = element("img", { class: "energy waiting", width: 66, height: 96, alt });
  whenSeen(image, () => showImage(image, path`/sequences/${sequenceId}/gei.png`).catch(() => {
    image.alt = "The energy image cannot be shown"; // the walk may have been erased meanwhile
  }).finally(() => image.classList.remove("waiting")));
  return image;
}

/** The energy image with each part's similarity beside it, head to feet. */
export function partEvidence(sequenceId, parts, threshold) {
  const height = IMAGE.height / parts.length;
  const [low, high] = [Math.min(...parts), Math.max(...parts)];
  const left = IMAGE.width + GAP;
  const mark = left + BARS * share(threshold);
  const strips = parts.flatMap((similarity, index) => {
    const kind = similarity >= threshold ? "reached" : "missed";
    const y = index * height;
    const name = drawn("title", {}, `Part ${index + 1} from the head: ${figure(similarity)}`);
    return [
      drawn("rect", { class: "over", y, width: IMAGE.width, height, opacity: 0.55 * ((similarity - low) / (high - low || 1)) }),
      drawn("rect", { class: "track", x: left, y: y + 0.75, width: BARS, height: height - 1.5 }),
      drawn("rect", { class: kind, x: left, y: y + 0.75, width: BARS * share(similarity), height: height - 1.5 }, name),
    ];
  });
  const picture = drawn("svg", { class: "parts", viewBox: `0 0 ${left + BARS} ${IMAGE.height}`, "aria-hidden": "true" },
    ...strips, drawn("line", { class: "mark", x1: mark, x2: mark, y1: 0, y2: IMAGE.height }));
  const image = energyImage(sequenceId, "");
  const best = parts.indexOf(high) + 1;
  const worst = parts.indexOf(low) + 1;
  return element("figure", { class: "evidence" },
    element("div", { class: "body" }, image, picture),
    element("figcaption", {},
      `Head to feet, ${parts.length} parts. Most alike: part ${best} (${figure(high)}, the most coloured); ` +
      `least: part ${worst} (${figure(low)}). The line is the threshold.`));
}
