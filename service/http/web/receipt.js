// The receipt of an erasure: what has gone, which models had learned from it, which jobs were ended.

import { element, entry } from "./dom.js";
import { count, moment } from "./figures.js";

/** A receipt for a person, and as the service gave it. */
export function receiptOf(receipt) {
  const { subjects, sequences, embeddings } = receipt.erased;
  const { models, jobs } = receipt;
  return element("div", { class: "card notice" },
    element("h2", {}, "Erased"),
    element("dl", { class: "facts" },
      entry("Gallery", receipt.gallery),
      receipt.subject_id ? entry("Subject", receipt.subject_id) : null,
      entry("Subjects", subjects), entry("Walks", sequences), entry("Embeddings", embeddings),
      entry("At", moment(receipt.erased_at)),
      entry("Receipt", element("code", {}, receipt.receipt_id))),
    models.length ? learned(receipt, models)
      : element("p", {}, "No model of this service was trained on it."),
    jobs.length ? element("p", {},
      `${count(jobs.length, "job")} that worked on these walks ${jobs.length === 1 ? "was" : "were"} cancelled.`) : null,
    receipt.scene ? element("p", {}, "What the gallery had learned about its cameras from these walks is gone; it learns anew from the others.") : null,
    element("p", { class: "hint" }, "The service does not keep receipts: save what you need of this one."),
    element("details", {}, element("summary", {}, "The receipt as the service gave it"),
      element("pre", {}, JSON.stringify(receipt, null, 2))));
}

function learned({ subject_id }, models) {
  const whom = subject_id ?? "people erased here";
  return element("div", { class: "notice warm" },
    element("strong", {}, `${models.length === 1 ? "A model has" : `${models.length} models have`} learned from ${whom}`),
    element("ul", {}, ...models.map((name) => element("li", {}, name))),
    element("p", {}, `Erasing has not changed ${models.length === 1 ? "it" : "them"}. `,
      element("a", { href: "#models" }, "See the models"), " to remove those that must not stay."));
}
