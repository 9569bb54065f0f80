// The walks that a footage job finds: a row for each person followed, a bar for each walk, and
// more on the one that is chosen, which can be enrolled.

import { bringIntoView, element, entry } from "./dom.js";
import { enrol } from "./enrolment.js";
import { count } from "./figures.js";
import { candidate } from "./identification.js";
import { inWords } from "./problem.js";

const TICKS = 4;
const FIELDS = [["View", "view", "090"], ["Condition", "condition", "normal"]];

/** Seconds of a clip of hours, as `1:02:03.4`. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const [hours, minutes] = [Math.floor(tenths / 36_000), Math.floor(tenths / 600) % 60];
  return `${hours}:${String(minutes).padStart(2, "0")}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

/**
 * A timeline that takes a job's events as they come: `{node, take(event), ended(result)}`.
 * `into()` names the gallery that a walk is enrolled in.
 */
export function timelineOf(into) {
  const rows = new Map(); // of a track: its row, and its bars in the order of time
  let forgotten = 0;
  let lasts = 1;
  const axis = element("div", { class: "axis", "aria-hidden": "true" });
  const list = element("ol", { class: "tracks", "aria-label": "Walks by person, from the beginning of the clip to its end" });
  const chart = element("div", { class: "timeline", hidden: true }, legend(),
    element("div", { class: "scroll" }, axis, list));
  const remark = element("p", { class: "hint" });
  const detail = element("div", { class: "chosen" });
  const node = element("div", {}, remark, chart, detail);

  const reach = (seconds) => {
    if (seconds <= lasts && axis.firstChild) return;
    lasts = Math.max(lasts, seconds);
    chart.style.setProperty("--lasts", lasts);
    axis.replaceChildren(...Array.from({ length: TICKS + 1 }, (_, index) =>
      element("span", {}, clock(lasts * index / TICKS).slice(0, -2))));
  };
  const bars = () => [...list.querySelectorAll("button")];
  const choose = (bar, walk) => {
    bars().forEach((each) => each.removeAttribute("aria-current"));
    bar.setAttribute("aria-current", "true");
    detail.replaceChildren(detailOf(walk, into, bar));
    bringIntoView(detail);
  };
  const add = (walk) => {
    reach(walk.to_s);
    let row = rows.get(walk.track);
    if (!row) {
      row = { strip: element("div", { class: "strip" }), track: walk.track };
      rows.set(walk.track, row);
      const item = element("li", { "data-track": walk.track }, element("span", { class: "name" }, `Track ${walk.track}`), row.strip);
      const next = [...list.children].find((other) => Number(other.dataset.track) > walk.track);
      list.insertBefore(item, next ?? null);
    }
    const bar = element("button", { type: "button", class: walk.decision === "match" ? "yes" : "no",
      tabindex: chart.hidden ? 0 : -1, "aria-label": said(walk), title: said(walk), onclick: () => choose(bar, walk) });
    bar.style.setProperty("--from", walk.from_s);
    bar.style.setProperty("--to", walk.to_s);
    row.strip.append(bar); // walks of a track end in the order in which they begin
    chart.hidden = false;
  };
  list.addEventListener("keydown", (event) => {
    const next = neighbour(bars(), event.target, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  list.addEventListener("focusin", ({ target }) => { // one stop for the Tab key, wherever one was
    bars().forEach((bar) => { bar.tabIndex = bar === target ? 0 : -1; });
  });

  const take = ({ kind, data }) => {
    if (kind !== "walk") return;
    if ("walk" in data) add(data);
    else forgotten += 1;
    if (forgotten) remark.textContent = `${count(forgotten, "walk")} of this clip ${forgotten === 1 ? "is" : "are"} no longer kept.`;
  };
  const ended = (result) => result && reach(result.seconds);
  return { node, take, ended };
}

/** What a footage job came to, beside its walks. */
export function footageOf({ gallery, segmenter, seconds, people, refused, walks, nobody }) {
  const poor = Object.entries(refused);
  return [element("div", { class: "notice" },
    element("strong", {}, walks.length ? `${count(walks.length, "walk")} in ${clock(seconds)}` : "No walk is listed"),
    nobody ? element("p", {}, nobody) : null,
    element("p", {}, `${count(people, "person was", "people were")} seen in full view, each time they came; silhouettes by: ${segmenter}; searched for in the gallery ${gallery}.`),
    poor.length ? element("p", {}, "No gait could be recognised in: ", poor.map(([code, many]) => `${count(many, "walk")} (${inWords(code)})`).join("; "), ".") : null)];
}

function legend() {
  return element("p", { class: "hint legend" },
    element("span", { class: "yes" }), " match ", element("span", { class: "no" }), " nobody you know · choose a walk for more");
}

const said = (walk) => `Track ${walk.track}, ${clock(walk.from_s)} to ${clock(walk.to_s)}: ${whose(walk)}`;

const whose = ({ decision, candidates }) => (decision === "match" ? candidates[0].subject_id : "nobody you know");

/** The bar that an arrow leads to: along the row and on to the next, or in the row above or below. */
function neighbour(bars, bar, key) {
  const at = bars.indexOf(bar);
  if (key === "ArrowRight") return bars[at + 1];
  if (key === "ArrowLeft") return bars[at - 1];
  if (key === "Home") return bars[0];
  if (key === "End") return bars.at(-1);
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const item = bar.closest("li");
  const beside = key === "ArrowDown" ? item.nextElementSibling : item.previousElementSibling;
  const from = (each) => Number(each.style.getPropertyValue("--from"));
  const off = (each) => Math.abs(from(each) - from(bar));
  return beside && [...beside.querySelectorAll("button")].reduce((one, other) => (off(other) < off(one) ? other : one));
}

/** One walk: whose it may be, and a form that enrols it. */
function detailOf(walk, into, bar) {
  const match = walk.decision === "match";
  const [best] = walk.candidates;
  const { score, issues } = walk.quality;
  return element("div", { class: `card decision ${match ? "yes" : "no"}` },
    element("p", { class: "verdict" }, match ? "Match" : "No match"),
    element("h3", {}, match ? best.subject_id : "Nobody you know"),
    element("dl", { class: "facts" },
      entry("In the footage", `${clock(walk.from_s)} to ${clock(walk.to_s)}, track ${walk.track}`),
      best ? entry("Similarity", best.similarity.toFixed(3)) : null,
      entry("Threshold", walk.threshold.toFixed(3)),
      entry("The walk", `${walk.frames} frames, quality ${score.toFixed(2)}`)),
    issues.length ? element("p", { class: "hint" }, issues.map(inWords).join("; ")) : null,
    enrolmentOf(walk, into, match ? best.subject_id : "", bar),
    element("ol", { class: "candidates", "aria-label": "Candidates, most alike first" },
      ...walk.candidates.map((one) => candidate(one, walk.threshold))));
}

function enrolmentOf(walk, into, subject, bar) {
  const place = element("div");
  const button = element("button", {}, "Enrol this walk");
  const form = element("form", { class: "row", "aria-label": "Enrol this walk" },
    element("label", {}, "Subject ", element("input", { name: "subject_id", required: true, maxlength: 128,
      pattern: "[A-Za-z0-9._:@\\-]+", autocomplete: "off", spellcheck: "false", value: subject })),
    ...FIELDS.map(([label, name, placeholder]) => element("label", {}, `${label} `,
      element("input", { name, maxlength: 64, placeholder, autocomplete: "off" }))),
    button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const sent = new FormData();
    const details = Object.fromEntries(FIELDS.map(([, name]) => [name, form.elements[name].value.trim()]).filter(([, value]) => value));
    sent.set("subject_id", form.elements.subject_id.value);
    sent.set("gallery", into());
    sent.set("walk", walk.walk);
    if (Object.keys(details).length) sent.set("metadata", JSON.stringify(details));
    button.disabled = true;
    await enrol(sent, place, () => {
      form.hidden = true; // it can be enrolled once
      bar.classList.add("enrolled");
    });
    button.disabled = false;
  });
  return element("div", { class: "enrolment" }, form, place);
}
