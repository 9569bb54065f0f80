// Who walks there, or is it this person: the question, and the answer with its evidence.

import { call } from "./api.js";
import { announce, bringIntoView, byId, element, entry } from "./dom.js";
import { energyImage, partEvidence, similarityBar } from "./evidence.js";
import { areSeveral, peopleOf, span } from "./people.js";
import { sequencePlayer } from "./player.js";
import { inWords, showing } from "./problem.js";
import { gallery } from "./service.js";
import { watchUploads } from "./upload.js";

const SOURCES = { request: "yours", gallery: "calibrated for the gallery", model: "the model’s own" };

/** Make the form work. */
export function startIdentification() {
  const form = byId("identify-form");
  const file = byId("identify-file");
  watchUploads(file, byId("identify-drop"), byId("identify-preview"));
  form.addEventListener("change", () => {
    const verifying = form.elements.question.value === "verify";
    byId("identify-subject").hidden = !verifying;
    byId("identify-top").hidden = verifying;
    form.elements.subject_id.required = verifying;
    form.querySelector(".primary").textContent = verifying ? "Verify" : "Identify";
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector(".primary");
    const place = byId("identify-result");
    button.disabled = true;
    const verifying = form.elements.question.value === "verify";
    await ask(verifying, asked(form, file.files[0], verifying), file.files[0], place);
    button.disabled = false;
  });
}

/** Send what was filled in, and once more with whoever is chosen of several people. */
async function ask(verifying, fields, walk, place) {
  await showing(place, async () => {
    try {
      const answer = await call("POST", verifying ? "/verify" : "/identify", { body: fields });
      place.replaceChildren(...(verifying ? verification(answer) : identification(answer)));
    } catch (error) {
      if (!areSeveral(error)) throw error;
      place.replaceChildren(peopleOf(error, walk, (track) => {
        fields.set("track", track);
        return ask(verifying, fields, walk, place);
      }));
    }
    bringIntoView(place.firstChild);
  });
}

function asked(form, walk, verifying) {
  const fields = new FormData();
  fields.set("sequence", walk);
  fields.set("gallery", gallery());
  fields.set("include", "metadata");
  fields.set("input", form.elements.input.value);
  if (form.elements.threshold.value) fields.set("threshold", form.elements.threshold.value);
  if (verifying) {
    fields.set("subject_id", form.elements.subject_id.value);
  } else {
    fields.set("top_k", form.elements.top_k.value || "5");
    fields.set("explain", "true");
  }
  return fields;
}

function identification(answer) {
  const [best] = answer.candidates;
  const match = answer.decision === "match";
  const nearest = best ? `The most similar person is ${named(best)}, below the threshold.`
    : `Nobody is enrolled in the gallery ${answer.gallery}.`;
  return [
    decision(match, match ? named(best) : "Unknown person", match ? "Match" : "No match",
      match ? null : nearest, best?.similarity, answer),
    element("ol", { class: "candidates", "aria-label": "Candidates, most alike first" },
      ...answer.candidates.map((one) => candidate(one, answer.threshold))),
  ];
}

const named = ({ subject_id, display_name }) => (display_name ? `${subject_id} ${display_name}` : subject_id);

function verification(answer) {
  return [
    decision(answer.verified, named(answer), answer.verified ? "Verified" : "Not verified",
      answer.verified ? null : "The most similar walk of this person is below the threshold.",
      answer.similarity, answer),
    element("ol", { class: "candidates", "aria-label": "The person’s most similar walk" },
      candidate({ ...answer, rank: 1, margin: null }, answer.threshold)),
  ];
}

/** The answer itself, large, and what it rests on. */
function decision(yes, who, verdict, remark, similarity, answer) {
  announce(`${verdict}: ${who}`);
  const { quality, frames } = answer.probe;
  return element("div", { class: `card decision ${yes ? "yes" : "no"}` },
    element("p", { class: "verdict" }, verdict),
    element("h2", {}, who),
    remark && element("p", {}, remark),
    element("dl", { class: "facts" },
      similarity === undefined ? null : entry("Similarity", similarity.toFixed(3)),
      entry("Threshold", `${answer.threshold.toFixed(3)}, ${SOURCES[answer.threshold_source]}`),
      entry("Your walk", `${frames} frames, quality ${quality.score.toFixed(2)}`),
      answer.probe.input === "footage" ? entry("In the footage", found(answer.probe)) : null,
      entry("Model", answer.model.name),
      entry("Took", `${answer.took_ms.toFixed(0)} ms`)),
    quality.issues.length ? element("p", { class: "hint" }, quality.issues.map(inWords).join("; ")) : null);
}

const SEGMENTERS = { network: "the network", background: "what moves before a still background", masks: "masks that were there" };

/** Where a walk was found, and what made its silhouettes. */
function found({ from_s, to_s, track, segmenter }) {
  return `${span(from_s, to_s)}, track ${track}; silhouettes by ${SEGMENTERS[segmenter] ?? segmenter}`;
}

/** One candidate: how alike, and the enrolled walk. */
export function candidate(one, threshold) {
  const film = element("div", { class: "film" });
  const play = element("button", {
    type: "button", class: "quiet", "aria-label": `Play the walk of ${one.subject_id}`,
    onclick: async () => {
      play.hidden = true;
      film.replaceChildren(await sequencePlayer(one.sequence_id, `the walk of ${one.subject_id}`));
    },
  }, "Play walk");
  const parts = one.parts && element("details", { open: one.rank === 1 },
    element("summary", {}, "Similarity of each part, head to feet"),
    partEvidence(one.sequence_id, one.parts, threshold));
  return element("li", { class: "card candidate" },
    energyImage(one.sequence_id, `Gait energy image of ${one.subject_id}`),
    element("div", {},
      element("div", { class: "heading" }, element("h3", {}, `${one.rank}. ${named(one)}`), play),
      similarityBar(one.similarity, threshold),
      one.margin === null ? null
        : element("p", { class: "hint" }, one.margin < 0
          ? `${(-one.margin).toFixed(3)} less than the first candidate` : `${one.margin.toFixed(3)} more than the next person`),
      film, parts));
}
