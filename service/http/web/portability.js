// A whole gallery as one file: out, and in as a new one.

import { call, path, Problem, send } from "./api.js";
import { announce, byId, element } from "./dom.js";
import { count } from "./figures.js";
import { showing } from "./problem.js";
import { gallery } from "./service.js";

/** Make the button and the form work; `arrived` is called with the name of a gallery that came in. */
export function startPortability(arrived) {
  const button = byId("export-start");
  button.addEventListener("click", async () => {
    button.disabled = true;
    await showing(byId("export-problem"), () => exportGallery(gallery()));
    button.disabled = false;
  });
  const form = byId("import-form");
  const { file, name } = form.elements;
  file.addEventListener("change", () => {
    name.value ||= (file.files[0]?.name ?? "").replace(/( \(\d+\))?\.zip$/i, "").replace(/[^A-Za-z0-9._-]/g, "-");
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const start = form.querySelector("button");
    start.disabled = true;
    const place = byId("import-result");
    await showing(place, async () => {
      place.replaceChildren(element("p", { class: "hint" }, "Uploading the file …"));
      const answer = await call("PUT", path`/galleries/${name.value}/import`, { body: file.files[0] });
      form.reset();
      await arrived(answer.gallery.name);
      place.replaceChildren(imported(answer));
      announce(`Imported the gallery ${answer.gallery.name}`);
    });
    start.disabled = false;
  });
}

/** Show nothing of what went out or came in before. */
export function resetPortability() {
  byId("export-problem").replaceChildren();
  byId("import-result").replaceChildren();
}

/** Fetched rather than linked to, because a link cannot send the key. */
async function exportGallery(name) {
  const place = byId("export-problem");
  place.replaceChildren(element("p", { class: "hint" }, "Making the file …"));
  const answer = await send("GET", path`/galleries/${name}/export`);
  let file;
  try {
    file = await answer.blob();
  } catch {
    throw new Problem({
      title: "The export was cut off",
      detail: "Something was erased from the gallery meanwhile, or the connection was lost. Export it again.",
    });
  }
  const link = element("a", { href: URL.createObjectURL(file), download: `${name}.zip` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // once the browser has taken it over
  place.replaceChildren(element("p", { class: "hint" }, `${name}.zip, ${(file.size / 2 ** 20).toFixed(1)} MiB`));
  announce(`The gallery ${name} is saved`);
}

function imported({ gallery: { name, subjects, sequences }, sequence_ids, embeddings }) {
  const ids = sequence_ids === "kept" ? "The ids of the walks are those of the file."
    : "The walks have new ids, because some of the file’s are taken here.";
  const left = embeddings.left ? ` ${count(embeddings.left, "embedding")} of models that are not here ${embeddings.left === 1 ? "was" : "were"} left out.` : "";
  return element("div", { class: "notice", role: "status" },
    element("strong", {}, `Imported ${name}`),
    element("p", {}, `${count(subjects, "person", "people")}, ${count(sequences, "walk")}. ${ids}${left}`));
}
