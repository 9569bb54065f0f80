// Corrects what is enrolled: a person’s name and id, whose a walk is, its metadata.

import { call, path } from "./api.js";
import { announce, confirmed, element } from "./dom.js";
import { showing } from "./problem.js";

const SUBJECT_ID = { maxlength: 128, pattern: "[A-Za-z0-9._:@\\-]+", autocomplete: "off" };

/** Forms for a subject; `done` is called with the id that it has afterwards. */
export function subjectCorrections({ subject_id, display_name, gallery }, done) {
  const query = { gallery };
  const edit = (json) => call("PATCH", path`/subjects/${subject_id}`, { query, json });
  return element("details", {}, element("summary", {}, "Correct"),
    correction("Name", { name: "display_name", value: display_name ?? "", maxlength: 200, autocomplete: "off" },
      "Save name", async (name) => (await edit({ display_name: name || null })).subject_id, done),
    correction("Id", { name: "new_id", value: subject_id, required: true, ...SUBJECT_ID },
      "Rename", async (id) => (await edit({ subject_id: id })).subject_id, done),
    correction("The same person as", { name: "merge_into", required: true, ...SUBJECT_ID },
      "Merge …", async (into) => (await confirmed(`Merge ${subject_id} into ${into}?`,
        `Every walk becomes one of ${into}. This cannot be undone.`, "Merge"))
        && (await edit({ merge_into: into })).subject_id, done));
}

/** Forms for a walk; `done` is called with its subject's id afterwards. */
export function walkCorrections({ sequence_id, subject_id, metadata }, done) {
  const edit = async (json) => (await call("PATCH", path`/sequences/${sequence_id}`, { json })).subject_id;
  const detail = (label, name) => correction(label, { name, value: metadata[name] ?? "", maxlength: 64, autocomplete: "off" },
    "Save", (value) => {
      const { [name]: _, ...rest } = metadata;
      return edit({ metadata: value ? { ...rest, [name]: value } : rest });
    }, done);
  return element("details", {}, element("summary", {}, "Correct"),
    detail("View", "view"), detail("Condition", "condition"),
    correction("Walk of", { name: "subject_id", value: subject_id, required: true, ...SUBJECT_ID },
      "Move", (id) => edit({ subject_id: id }), done));
}

function correction(label, field, button, send, done) {
  const trouble = element("div");
  return element("form", {
    class: "row",
    onsubmit: async (event) => {
      event.preventDefault();
      await showing(trouble, async () => {
        const now = await send(event.target.elements[field.name].value.trim());
        if (!now) return; // not confirmed
        announce("Corrected");
        await done(now);
      });
    },
  }, element("label", {}, `${label} `, element("input", field)), element("button", {}, button), trouble);
}
