// The chosen gallery: its subjects a page at a time, one subject's walks, erasure with its receipt.

import { call, path } from "./api.js";
import { resetAudit, startAudit } from "./audit.js";
import { leaveCalibration, showCalibration, startCalibration } from "./calibration.js";
import { subjectCorrections, walkCorrections } from "./corrections.js";
import { announce, bringIntoView, byId, confirmed, element, entry } from "./dom.js";
import { coverageOf, walkOf } from "./enrolment.js";
import { moment, percent } from "./figures.js";
import { resetPortability, startPortability } from "./portability.js";
import { showing } from "./problem.js";
import { receiptOf } from "./receipt.js";
import { keptFor, showRetention, startRetention } from "./retention.js";
import { at, chooseGallery, gallery, keepAddress, knownGalleries, learnGalleries } from "./service.js";

const PAGE = 12;
let cursors = [null]; // of the pages up to the one shown, for the way back

/** Make the buttons and forms work. */
export function startGallery() {
  byId("subjects-after").addEventListener("click", () => turn(() => cursors.push(byId("subjects-after").value)));
  byId("subjects-before").addEventListener("click", () => turn(() => cursors.pop()));
  startAudit();
  startCalibration(reread);
  startRetention(reread);
  startPortability(async (name) => {
    await learnGalleries(name);
    await showGallery();
  });
  byId("find-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const subject = event.target.elements.subject_id.value;
    keepAddress("gallery", gallery(), subject);
    showSubject(subject);
  });
  byId("new-gallery-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { name } = event.target.elements;
    await showing(byId("galleries-problem"), async () => {
      await call("POST", "/galleries", { json: { name: name.value } });
      byId("galleries-problem").replaceChildren();
      await learnGalleries(name.value);
      announce(`Gallery ${name.value} created`);
      event.target.reset();
      await showGallery();
    });
  });
  byId("delete-gallery").addEventListener("click", () => erase(
    `Delete the gallery ${gallery()}?`,
    "Every subject and every walk in it is erased, and cannot be brought back.",
    path`/galleries/${gallery()}`));
}

/** Show the chosen gallery from its beginning. */
export async function showGallery() {
  cursors = [null];
  byId("subject-detail").replaceChildren();
  byId("gallery-receipt").replaceChildren();
  resetPortability();
  leaveGallery();
  settle(false); // until this one is read, they show what another gallery has
  await reread();
}

/** Show a subject, of another gallery too. */
export async function openSubject(from, subjectId) {
  if (from !== gallery() && chooseGallery(from)) await showGallery();
  await showSubject(subjectId, from);
}

/** Stop following the jobs that were started here; they go on. */
export function leaveGallery() {
  resetAudit();
  leaveCalibration();
}

async function reread() {
  await showing(byId("gallery-summary"), async () => {
    await learnGalleries();
    const found = knownGalleries().find((one) => one.name === gallery());
    byId("gallery-summary").replaceChildren(found ? summary(found)
      : element("p", { class: "hint" }, "This gallery is created with the first walk enrolled in it."));
    showCalibration(found);
    showRetention(found);
    settle(true);
  });
  await showSubjects();
}

/** Whether the forms of the gallery are those of the chosen one. */
function settle(ready) {
  for (const form of ["calibration-form", "retention-form"]) byId(form).inert = !ready;
}

function summary(found) {
  const calibrated = found.operating_point;
  return element("dl", { class: "facts card" },
    entry("Gallery", found.name),
    entry("Subjects", found.subjects), entry("Walks", found.sequences), entry("Model", found.model.name),
    entry("Threshold", calibrated ? calibration(calibrated) : "the model’s own"),
    entry("Adapted to its cameras", adapted(found.scene)),
    entry("Walks are kept", keptFor(found.max_age_days)));
}

function calibration({ threshold, target_fpir, stale }) {
  return `${threshold.toFixed(4)}, calibrated for ${percent(target_fpir)} of strangers${stale ? ", out of date" : ""}`;
}

function adapted(scene) {
  if (!scene) return "not yet";
  const gain = scene.gain.value * 100;
  const found = `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(1)} % of comparisons right`;
  return scene.used ? `since ${moment(scene.fitted_at)}: ${found}` : `tried ${moment(scene.fitted_at)}, not in use`;
}

async function turn(change) {
  change();
  await showSubjects();
}

async function showSubjects() {
  const place = byId("subject-list");
  byId("subject-pager").hidden = true;
  await showing(place, async () => {
    const query = { gallery: gallery(), limit: PAGE, cursor: cursors.at(-1) };
    const page = await call("GET", "/subjects", { query });
    if (query.gallery !== gallery()) return; // another one was chosen meanwhile, and is on its way
    place.replaceChildren(page.items.length ? subjectTable(page.items)
      : element("p", { class: "hint" }, "Nobody is enrolled here yet."));
    byId("subjects-before").disabled = cursors.length === 1;
    byId("subjects-after").disabled = page.next_cursor === null;
    byId("subjects-after").value = page.next_cursor ?? "";
    byId("subject-pager").hidden = cursors.length === 1 && page.next_cursor === null;
  });
}

function subjectTable(subjects) {
  return element("table", {},
    element("thead", {}, element("tr", {},
      ...["Subject", "Walks", "Since"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...subjects.map((one) => element("tr", {},
      element("th", { scope: "row" },
        element("a", { href: at("gallery", one.gallery, one.subject_id) }, one.subject_id), one.display_name ? ` ${one.display_name}` : null),
      element("td", {}, one.sequences),
      element("td", {}, new Date(one.created_at).toLocaleDateString())))));
}

async function showSubject(subjectId, from = gallery()) {
  const place = byId("subject-detail");
  await showing(place, async () => {
    const query = { gallery: from };
    const subject = await call("GET", path`/subjects/${subjectId}`, { query });
    const heading = element("h2", { tabindex: -1 }, subject.subject_id,
      subject.display_name ? ` ${subject.display_name}` : null);
    const corrected = async (now) => {
      keepAddress("gallery", from, now);
      await reread();
      await showSubject(now, from);
    };
    place.replaceChildren(element("div", { class: "card" },
      element("div", { class: "heading" }, heading,
        element("button", {
          type: "button", class: "danger",
          onclick: () => erase(`Delete ${subject.subject_id}?`,
            `All ${subject.sequences.length} walks and their embeddings are erased, and cannot be brought back.`,
            path`/subjects/${subject.subject_id}`, query),
        }, "Delete subject …")),
      details(subject.metadata),
      subjectCorrections(subject, corrected),
      subject.coverage ? coverageOf(subject.coverage) : null,
      element("ul", { class: "walks" }, ...subject.sequences.map((one, index) =>
        walkOf(one, `walk ${index + 1} of ${subject.subject_id}`, details(one.metadata), walkCorrections(one, corrected),
          element("button", {
            type: "button", class: "danger", "aria-label": `Delete walk ${index + 1} …`,
            onclick: () => erase(`Delete walk ${index + 1} of ${subject.subject_id}?`,
              subject.sequences.length === 1 ? "It is the last one, so the subject goes with it."
                : "It is erased, and cannot be brought back.",
              path`/sequences/${one.sequence_id}`),
          }, "Delete …"))))));
    heading.focus({ preventScroll: true });
    bringIntoView(heading);
  });
}

function details(metadata) {
  const known = Object.entries(metadata);
  return known.length ? element("p", { class: "hint" }, known.map(([name, value]) => `${name} ${value}`).join(", ")) : null;
}

async function erase(title, text, to, query = {}) {
  if (!(await confirmed(title, text))) return;
  const place = byId("gallery-receipt");
  await showing(place, async () => {
    const receipt = await call("DELETE", to, { query });
    byId("subject-detail").replaceChildren();
    keepAddress("gallery");
    cursors = [null];
    place.replaceChildren(receiptOf(receipt));
    bringIntoView(place);
    await reread();
  });
}
