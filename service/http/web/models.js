// The models that the service knows: what they are, what they reached, where they decide.

import { activate, activeModel, leaveActivation, startActivation } from "./activation.js";
import { call, path, send } from "./api.js";
import { startCheckpoints } from "./checkpoint.js";
import { announce, byId, confirmed, element, entry } from "./dom.js";
import { moment, short } from "./figures.js";
import { showing } from "./problem.js";
import { figuresOf, numbers } from "./progress.js";
import { gallery, learnGalleries } from "./service.js";

/** Make the buttons and the form work. */
export function startModels() {
  startActivation(listModels);
  startCheckpoints(listModels);
}

/** Show the chosen gallery’s model and every other. */
export async function showModels() {
  leaveActivation();
  await listModels();
}

async function listModels() {
  const place = byId("model-list");
  await showing(place, async () => {
    await learnGalleries();
    const { items } = await call("GET", "/models");
    byId("active-model").replaceChildren(activeModel());
    byId("checkpoint-result").replaceChildren();
    place.replaceChildren(...items.map(modelCard));
  });
}

function modelCard(model) {
  const { active_in: active, previous_in: previous } = model;
  const headline = numbers(model.headline);
  return element("article", { class: "card model" },
    element("div", { class: "heading" }, element("h2", {}, model.name),
      element("span", { class: "badge" }, model.source)),
    active.length ? element("p", {}, `Active in ${listed(active)}.`) : null,
    previous.length ? element("p", { class: "hint" }, `Previous model of ${listed(previous)}.`) : null,
    element("dl", { class: "facts" },
      entry("Network", model.architecture ?? "unknown"),
      model.parameters === null ? null : entry("Parameters", model.parameters.toLocaleString()),
      model.weights_bytes === null ? null : entry("Size", `${short(model.weights_bytes / 2 ** 20)} MiB`),
      model.created_at ? entry("Made", moment(model.created_at)) : null,
      entry("Digest", element("code", {}, model.digest.slice(0, 12)))),
    headline.length ? element("h3", {}, "Right at the first answer (rank-1)") : null,
    element("dl", { class: "facts" }, ...figuresOf(headline)),
    details(model.name),
    element("p", { class: "row" },
      active.includes(gallery()) ? null : element("button", { type: "button", class: "changes-model",
        onclick: () => activate(model.name) }, `Activate in ${gallery()}`),
      model.source === "shipped" || active.length || previous.length ? null : element("button", { type: "button", class: "danger",
        "aria-label": `Remove ${model.name} …`, onclick: () => remove(model.name) }, "Remove …")));
}

/** The card, which the list leaves out: read when somebody opens it. */
function details(name) {
  const place = element("div");
  const read = () => showing(place, async () => {
    place.replaceChildren(...cardOf(await call("GET", path`/models/${name}`)));
  });
  return element("details", { ontoggle: ({ target }) => target.open && read() },
    element("summary", {}, "Details"), place);
}

function cardOf({ card, metrics }) {
  const figures = numbers(metrics);
  return [
    element("dl", { class: "facts" },
      entry("Parts", `${card.parts} × ${card.channels}`),
      entry("Compared by", card.metric),
      entry("Threshold", card.threshold === null ? "none: give one, or calibrate" : card.threshold.toFixed(4)),
      ...figuresOf(figures)),
    card.thresholds?.length ? thresholds(card.thresholds) : null,
    card.notes ? element("p", { class: "hint" }, card.notes) : null,
  ].filter(Boolean);
}

const listed = (names) => `${names.length === 1 ? "the gallery" : "the galleries"} ${names.join(", ")}`;

async function remove(name) {
  if (!(await confirmed(`Remove the model ${name}?`, "Its files are deleted, and cannot be brought back.", "Remove"))) return;
  const place = byId("checkpoint-result");
  await showing(place, async () => {
    await send("DELETE", path`/models/${name}`);
    announce(`The model ${name} is removed`);
    await listModels();
  });
}

/** Thresholds by how many strangers may be taken for somebody, and by how many people are enrolled. */
function thresholds(all) {
  const sizes = [...new Set(all.map((one) => one.gallery_subjects))].sort((a, b) => a - b);
  const rates = [...new Set(all.map((one) => one.target_fpir))].sort((a, b) => b - a);
  const cell = (rate, size) =>
    all.find((one) => one.target_fpir === rate && one.gallery_subjects === size)?.threshold;
  return element("div", { class: "wide" }, element("table", {},
    element("caption", {}, "Thresholds by the share of strangers that may be taken for somebody (rows) and the number of people enrolled (columns)"),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Strangers matched"),
      ...sizes.map((size) => element("th", { scope: "col" }, size.toLocaleString())))),
    element("tbody", {}, ...rates.map((rate) => element("tr", {},
      element("th", { scope: "row" }, `${Number((100 * rate).toPrecision(6))} %`),
      ...sizes.map((size) => element("td", {}, cell(rate, size)?.toFixed(4) ?? "–")))))));
}
