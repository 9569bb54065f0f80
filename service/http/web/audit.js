// Auditing a gallery: which walks attract other people, who may be one person, what is poor.

import { byId, element, entry } from "./dom.js";
import { inWords } from "./problem.js";
import { runner } from "./running.js";
import { at, gallery, has } from "./service.js";

const AUDIT = "/jobs/audit-gallery"; // not every version of the service has it
const audits = runner(byId("audit-result"), "audit", (busy) => { byId("audit-start").disabled = busy; });

/** Make the button work. */
export function startAudit() {
  byId("audit-start").addEventListener("click", () => audits.run(AUDIT, { gallery: gallery() }, auditOf));
}

/** Offer an audit where there is one, and show none. */
export function resetAudit() {
  audits.leave();
  byId("audit-card").hidden = !has("POST", AUDIT);
}

/** What an audit found. */
export function auditOf(result) {
  const who = ({ subject_id }) => element("a", { href: at("gallery", result.gallery, subject_id) }, subject_id);
  const { totals } = result;
  return element("div", { class: "audit" },
    element("dl", { class: "facts" },
      entry("Gallery", result.gallery), entry("Subjects", result.gallery_subjects), entry("Walks", result.gallery_sequences),
      entry("Threshold", result.threshold.toFixed(4)), entry("At", new Date(result.audited_at).toLocaleString())),
    Object.values(totals).some(Boolean) ? null : element("p", {}, "Nothing was found."),
    table("Walks that are nearer to another person", totals.nearer_to_another, result.nearer_to_another,
      ["Enrolled as", "Resembles", "Similarity", "To its own"], (one) => [
        who(one), who(one.other), one.similarity.toFixed(3), one.own_similarity?.toFixed(3) ?? "no other walk"]),
    table("Subjects who may be one person", totals.pairs, result.pairs, ["One", "The other", "Similarity"],
      ({ members: [one, other], similarity }) => [who(one), who(other), similarity.toFixed(3)]),
    table("Walks that attract many others", totals.hubs, result.hubs, ["Subject", "Attracts", "Above the threshold"],
      (one) => [who(one), `${one.attracts} subjects`, one.attracts_above_threshold]),
    table("Poor walks", totals.poor, result.poor, ["Subject", "Quality", "Why"],
      (one) => [who(one), one.score.toFixed(2), one.issues.map(inWords).join("; ") || "the score is low"]));
}

function table(title, total, rows, columns, cells) {
  if (!total) return null;
  const shown = rows.length < total ? `, ${rows.length} of them shown` : "";
  return element("div", { class: "wide" }, element("table", {},
    element("caption", {}, `${title}: ${total}${shown}`),
    element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row).map((cell) => element("td", {}, cell)))))));
}
