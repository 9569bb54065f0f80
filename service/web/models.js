// The models that the service knows: what they are, what they reached, where they decide.

import { call } from "./api.js";
import { byId, element, entry } from "./dom.js";
import { showing } from "./problem.js";
import { figuresOf, numbers } from "./progress.js";
import { knownGalleries } from "./service.js";

/** List the models. */
export async function showModels() {
  const place = byId("model-list");
  await showing(place, async () => {
    const { items } = await call("GET", "/models");
    place.replaceChildren(...items.map(modelCard));
  });
}

function modelCard(model) {
  const { card } = model;
  const used = knownGalleries().filter((one) => one.model.digest === model.digest).map((one) => one.name);
  const metrics = numbers(model.metrics);
  return element("article", { class: "card model" },
    element("div", { class: "heading" }, element("h2", {}, model.name),
      element("span", { class: "badge" }, model.source)),
    used.length ? element("p", {}, `In use by ${used.length === 1 ? "the gallery" : "the galleries"} ${used.join(", ")}.`) : null,
    element("dl", { class: "facts" },
      entry("Network", card.architecture),
      entry("Parts", `${card.parts} × ${card.channels}`),
      entry("Compared by", card.metric),
      entry("Threshold", card.threshold === null ? "none: give one, or calibrate" : card.threshold.toFixed(4)),
      model.created_at ? entry("Made", new Date(model.created_at).toLocaleString()) : null,
      entry("Digest", element("code", {}, model.digest.slice(0, 12)))),
    metrics.length ? element("h3", {}, "What it reached") : null,
    element("dl", { class: "facts" }, ...figuresOf(metrics)),
    card.thresholds?.length ? thresholds(card.thresholds) : null,
    card.notes ? element("p", { class: "hint" }, card.notes) : null);
}

/** Thresholds by how many strangers may be taken for somebody, and by how many people are enrolled. */
function thresholds(all) {
  const sizes = [...new Set(all.map((one) => one.gallery_subjects))].sort((a, b) => a - b);
  const rates = [...new Set(all.map((one) => one.target_fpir))].sort((a, b) => b - a);
  const cell = (rate, size) =>
    all.find((one) => one.target_fpir === rate && one.gallery_subjects === size)?.threshold;
  return element("details", {},
    element("summary", {}, "Thresholds"),
    element("div", { class: "wide" }, element("table", {},
      element("caption", {}, "By the share of strangers that may be taken for somebody (rows) and the number of people enrolled (columns)"),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Strangers matched"),
        ...sizes.map((size) => element("th", { scope: "col" }, size.toLocaleString())))),
      element("tbody", {}, ...rates.map((rate) => element("tr", {},
        element("th", { scope: "row" }, `${Number((100 * rate).toPrecision(6))} %`),
        ...sizes.map((size) => element("td", {}, cell(rate, size)?.toFixed(4) ?? "–"))))))));
}
