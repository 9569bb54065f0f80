// Enrolling walks of one person.

import { call } from "./api.js";
import { conflictList, conflictNotice } from "./conflict.js";
import { announce, bringIntoView, byId, element, whenSeen } from "./dom.js";
import { energyImage } from "./evidence.js";
import { areSeveral, peopleOf } from "./people.js";
import { sequencePlayer } from "./player.js";
import { inWords, showing } from "./problem.js";
import { gallery, learnGalleries } from "./service.js";
import { watchUploads } from "./upload.js";

const DETAILS = ["view", "condition"];
const ADVICE = {
  another_sequence: "Enrol another walk: with a single one, every bad frame counts.",
  another_view: "Enrol a walk in another view: people are recognised less well in a view that is not enrolled.",
  name_the_view: "Say the view with each walk, so that missing ones can be named; of an enrolled one under “Correct”, in the gallery.",
};

/** Make the form work. */
export function startEnrolment() {
  const form = byId("enrol-form");
  const file = byId("enrol-file");
  watchUploads(file, byId("enrol-drop"), byId("enrol-preview"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector(".primary");
    button.disabled = true;
    await enrol(fields(form, file.files), byId("enrol-result"), () => {
      file.value = "";
      byId("enrol-preview").replaceChildren();
    });
    button.disabled = false;
  });
}

/**
 * Send what was filled in, and once more where conflicts are accepted or one of several people is
 * chosen; the answer goes to `place`, and `done` is called when it is enrolled.
 */
export async function enrol(sent, place, done) {
  await showing(place, async () => {
    try {
      const answer = await call("POST", "/enroll", { body: sent });
      place.replaceChildren(enrolled(answer));
      done();
    } catch (error) {
      if (error.type?.endsWith("/enrolment-conflict")) {
        sent.set("accept_conflict", "true");
        place.replaceChildren(conflictNotice(error, () => enrol(sent, place, done)));
      } else if (areSeveral(error) && sent.getAll("sequence").length === 1) {
        place.replaceChildren(peopleOf(error, sent.get("sequence"), (track) => {
          sent.set("track", track);
          return enrol(sent, place, done);
        }));
      } else {
        throw error;
      }
    }
    bringIntoView(place.firstChild);
    await learnGalleries();
  });
}

function fields(form, walks) {
  const sent = new FormData();
  sent.set("subject_id", form.elements.subject_id.value);
  sent.set("gallery", gallery());
  sent.set("input", form.elements.input.value);
  for (const walk of walks) sent.append("sequence", walk);
  const details = Object.fromEntries(
    DETAILS.map((name) => [name, form.elements[name].value.trim()]).filter(([, value]) => value));
  if (Object.keys(details).length) sent.set("metadata", JSON.stringify(details));
  return sent;
}

function enrolled(answer) {
  const walks = answer.sequences.length === 1 ? "1 walk" : `${answer.sequences.length} walks`;
  const added = answer.sequences.some((one) => !one.already_enrolled);
  const verdict = added ? "Enrolled" : "Already enrolled";
  announce(`${verdict} ${walks} of ${answer.subject_id}`);
  return element("div", { class: "card decision yes" },
    element("p", { class: "verdict" }, verdict),
    element("h2", {}, answer.subject_id),
    element("p", {}, `${walks} in the gallery ${answer.gallery}, with the model ${answer.model.name}.`),
    answer.coverage ? coverageOf(answer.coverage) : null,
    answer.conflicts?.length ? element("div", { class: "notice bad" },
      element("strong", {}, "This may be somebody who is enrolled already"), conflictList(answer.conflicts)) : null,
    element("ul", { class: "walks" }, ...answer.sequences.map((one, index) => {
      const name = `walk ${index + 1} of ${answer.subject_id}`;
      return walkOf(one, name, one.already_enrolled ? element("p", { class: "badge" }, "already enrolled") : null);
    })));
}

/** An enrolled walk: its energy image, its silhouettes, how good it is; and more about it. */
export function walkOf(sequence, name, ...more) {
  const film = element("div", { class: "film" });
  whenSeen(film, async () => film.replaceChildren(await sequencePlayer(sequence.sequence_id, name)));
  const { score, issues } = sequence.quality;
  return element("li", {},
    energyImage(sequence.sequence_id, `Gait energy image of ${name}`), film,
    element("div", {},
      element("p", {}, `${sequence.frames} frames, quality ${score.toFixed(2)}`),
      issues.length ? element("p", { class: "hint" }, issues.map(inWords).join("; ")) : null,
      ...more));
}

/** What a subject's coverage says, and what to enrol next. */
export function coverageOf({ sequences, views, conditions, missing_views, missing_conditions, advice }) {
  const walks = sequences === 1 ? "1 walk" : `${sequences} walks`;
  const have = [views.length ? `views ${views.join(", ")}` : null,
    conditions.length ? `conditions ${conditions.join(", ")}` : null].filter(Boolean);
  const missing = [
    missing_views.length ? `Others here also have views: ${missing_views.join(", ")}.` : null,
    missing_conditions.length ? `Others here also have conditions: ${missing_conditions.join(", ")}.` : null,
  ];
  const remarks = [...advice.map((code) => ADVICE[code] ?? code), ...missing].filter(Boolean);
  return element("div", { class: "coverage" },
    element("p", {}, `Covered: ${[walks, ...have].join("; ")}.`),
    remarks.length ? element("ul", {}, ...remarks.map((remark) => element("li", {}, remark))) : null);
}
