// Enrolling walks of one person.

import { call } from "./api.js";
import { announce, bringIntoView, byId, element, whenSeen } from "./dom.js";
import { energyImage } from "./evidence.js";
import { sequencePlayer } from "./player.js";
import { inWords, showing } from "./problem.js";
import { gallery, learnGalleries } from "./service.js";
import { watchUploads } from "./upload.js";

const DETAILS = ["view", "condition"];

/** Make the form work. */
export function startEnrolment() {
  const form = byId("enrol-form");
  const file = byId("enrol-file");
  watchUploads(file, byId("enrol-drop"), byId("enrol-preview"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector(".primary");
    const place = byId("enrol-result");
    button.disabled = true;
    await showing(place, async () => {
      const answer = await call("POST", "/enroll", { form: fields(form, file.files) });
      place.replaceChildren(enrolled(answer));
      bringIntoView(place.firstChild);
      file.value = "";
      byId("enrol-preview").replaceChildren();
      await learnGalleries();
    });
    button.disabled = false;
  });
}

function fields(form, walks) {
  const sent = new FormData();
  sent.set("subject_id", form.elements.subject_id.value);
  sent.set("gallery", gallery());
  for (const walk of walks) sent.append("sequence", walk);
  const details = Object.fromEntries(
    DETAILS.map((name) => [name, form.elements[name].value.trim()]).filter(([, value]) => value));
  if (Object.keys(details).length) sent.set("metadata", JSON.stringify(details));
  return sent;
}

function enrolled(answer) {
  const walks = answer.sequences.length === 1 ? "1 walk" : `${answer.sequences.length} walks`;
  announce(`Enrolled ${walks} of ${answer.subject_id}`);
  return element("div", { class: "card decision yes" },
    element("p", { class: "verdict" }, "Enrolled"),
    element("h2", {}, answer.subject_id),
    element("p", {}, `${walks} in the gallery ${answer.gallery}, with the model ${answer.model.name}.`),
    element("ul", { class: "walks" }, ...answer.sequences.map((one, index) => {
      const name = `walk ${index + 1} of ${answer.subject_id}`;
      return walkOf(one, name);
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
