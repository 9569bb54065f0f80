// Auditing a gallery: which walks attract other people, who may be one person, what is poor.

import { call, path } from "./api.js";
import { announce, byId, element, entry } from "./dom.js";
import { follow } from "./events.js";
import { inWords, problemNotice } from "./problem.js";
import { gallery, has } from "./service.js";

const AUDIT = "/jobs/audit-gallery"; // not every version of the service has it
const FINAL = new Set(["succeeded", "failed", "cancelled"]);
let watching = new AbortController();

/** Make the button work; `choose` is called with a subject that somebody wants to see. */
export function startAudit(choose) {
  byId("audit-start").addEventListener("click", () => carryOut(choose));
}

/** Offer an audit where there is one, and show none. */
export function resetAudit() {
  watching.abort();
  byId("audit-start").disabled = false;
  byId("audit-card").hidden = !has("POST", AUDIT);
  byId("audit-result").replaceChildren();
}

async function carryOut(choose) {
  watching.abort();
  const mine = (watching = new AbortController());
  const place = byId("audit-result");
  const bar = element("progress", { max: 1, "aria-label": "Progress of the audit" });
  place.replaceChildren(bar);
  byId("audit-start").disabled = true;
  try {
    const { id } = await call("POST", AUDIT, { json: { gallery: gallery() }, signal: mine.signal });
    const ended = (event) => event.kind === "status" && FINAL.has(event.data.status);
    for await (const event of follow(path`/jobs/${id}/events`, { signal: mine.signal, ended })) {
      if (event.kind === "progress") bar.value = event.data.step / event.data.total_steps;
    }
    if (mine.signal.aborted) return;
    const job = await call("GET", path`/jobs/${id}`, { signal: mine.signal });
    place.replaceChildren(job.result ? auditOf(job.result, choose)
      : element("div", { class: "notice bad", role: "alert" }, job.error ?? `The audit was ${job.status}.`));
    announce("The audit has ended");
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(problemNotice(error));
  }
  if (watching === mine) byId("audit-start").disabled = false;
}

/** What an audit found; with `choose`, subjects are buttons. */
export function auditOf(result, choose = null) {
  const who = ({ subject_id }) => (choose
    ? element("button", { type: "button", class: "link", onclick: () => choose(subject_id) }, subject_id)
    : subject_id);
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
