// Jobs: start one, watch its curve as it comes, cancel it.

import { call, path } from "./api.js";
import { announce, bringIntoView, byId, element } from "./dom.js";
import { follow } from "./events.js";
import { outcomeOf } from "./outcome.js";
import { problemNotice, showing } from "./problem.js";
import { chartOf } from "./progress.js";
import { FINAL } from "./running.js";
import { timelineOf } from "./timeline.js";
import { allowed, at, gallery, has, keepAddress, knownGalleries, offer } from "./service.js";

const PAGE = 10;
const CALIBRATE = "/jobs/calibrate"; // not every version of the service has it
const OF_BYTES = (step, total) => (total ? `${Math.floor(100 * step / total)} % of the clip` : "");
let watching = new AbortController();
let older = null;

/** Make the buttons and forms work. */
export function startJobs() {
  submits(byId("distill-form"), "/jobs/distill", ({ elements }) => ({
    name: elements.name.value,
    recipe: elements.recipe.value,
    dataset: { gallery: elements.gallery.value },
    teachers: [...document.querySelectorAll("#teachers input:checked")].map((box) => box.value),
    activate: elements.activate.value,
    ...(elements.steps.value && { overrides: { steps: Number(elements.steps.value) } }),
  }));
  submits(byId("evaluate-form"), "/jobs/evaluate", ({ elements }) => ({
    model: elements.model.value,
    dataset: { gallery: elements.gallery.value },
    ...(elements.protocol.value ? { protocol: elements.protocol.value } : { conditions: {
      enrolled: listed(elements.enrolled.value),
      asked: Object.fromEntries(elements.asked.value.trim().split(/\s+/).map(question)),
      apart: Number(elements.apart.value),
    } }),
  }));
  byId("evaluate-form").elements.protocol.addEventListener("change", showConditions);
  submits(byId("calibrate-form"), CALIBRATE, ({ elements }) => ({
    gallery: elements.gallery.value,
    target_fpir: Number((elements.target.value / 100).toPrecision(12)),
  }));
  submits(byId("footage-form"), "/jobs/footage", (form) => new FormData(form));
  byId("refresh-jobs").addEventListener("click", () => listJobs());
  byId("more-jobs").addEventListener("click", () => listJobs(older));
}

/** Show the forms as they can be filled in now, and the jobs. */
export async function showJobs() {
  const galleries = knownGalleries().map((one) => one.name);
  byId("calibrate-card").hidden = !has("POST", CALIBRATE);
  for (const form of ["footage-form", "distill-form", "evaluate-form", "calibrate-form"]) {
    offer(byId(form).elements.gallery, galleries.length ? galleries : ["default"], gallery());
  }
  const { protocol } = byId("evaluate-form").elements;
  const protocols = [...allowed("EvaluateRequest", "protocol"), ""];
  const wanted = protocol.length ? protocol.value : "cross-view";
  offer(protocol, protocols, wanted, (name) => name || "conditions of your own");
  showConditions();
  await showing(byId("jobs-problem"), async () => {
    const { items } = await call("GET", "/models");
    const names = items.map((model) => model.name);
    offer(byId("evaluate-form").elements.model, names);
    const chosen = new Set([...document.querySelectorAll("#teachers input:checked")].map((box) => box.value));
    byId("teachers").replaceChildren(...names.map((name, index) => element("label", {},
      element("input", { type: "checkbox", value: name, checked: chosen.size ? chosen.has(name) : index === 0 }), ` ${name}`)));
    byId("jobs-problem").replaceChildren();
    await listJobs();
  });
}

/** Stop following: a stream holds one of the browser's few connections. */
export function leaveJobs() {
  watching.abort();
  byId("job-detail").replaceChildren();
}

/** Ask for conditions only where no protocol says which are enrolled. */
function showConditions() {
  const own = !byId("evaluate-form").elements.protocol.value;
  byId("own-conditions").hidden = !own;
  byId("own-conditions").disabled = !own;
}

const listed = (text) => text.split(/[\s,]+/).filter(Boolean);

/** `NAME=CONDITION,…`, or what is its own name, as a name and patterns of conditions. */
function question(text) {
  const [name, patterns = name] = text.split("=");
  return [name, listed(patterns)];
}

function submits(form, to, request) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector(".primary");
    button.disabled = true;
    await showing(byId("jobs-problem"), async () => {
      const asked = request(form);
      const job = await call("POST", to, asked instanceof FormData ? { body: asked } : { json: asked });
      byId("jobs-problem").replaceChildren();
      announce("The job is queued");
      keepAddress("jobs", job.id);
      watch(job);
      await listJobs();
    });
    button.disabled = false;
  });
}

/** Watch the job with this id. */
export async function openJob(id) {
  await showing(byId("jobs-problem"), async () => {
    watch(await call("GET", path`/jobs/${id}`));
    byId("jobs-problem").replaceChildren();
    if (!rowOf(id)) await listJobs(); // another job has queued it
  });
}

async function listJobs(cursor = null) {
  await showing(byId("job-list"), async () => {
    const page = await call("GET", "/jobs", { query: { limit: PAGE, cursor } });
    older = page.next_cursor;
    byId("more-jobs").hidden = older === null;
    const rows = page.items.map(jobRow);
    const body = byId("job-list").querySelector("tbody");
    if (cursor && body) body.append(...rows);
    else byId("job-list").replaceChildren(rows.length ? jobTable(rows)
      : element("p", { class: "hint" }, "No job yet."));
  });
}

function jobTable(rows) {
  return element("table", {},
    element("thead", {}, element("tr", {},
      ...["Job", "State", "Done", "Created"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows));
}

function jobRow(job) {
  const asked = new Date(job.created_at).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  return element("tr", { "data-job": job.id },
    element("th", { scope: "row" }, element("a", { href: at("jobs", job.id),
      "aria-label": `The job of type ${job.type}, ${job.status}, of ${asked}` },
      job.result?.model ? `${job.type} ${job.result.model}` : job.type)),
    element("td", {}, badge(job.status)),
    element("td", {}, `${Math.round(100 * job.progress.fraction)} %`),
    element("td", {}, asked));
}

/** The job's row, if it is listed. */
const rowOf = (id) => byId("job-list").querySelector(`[data-job="${CSS.escape(id)}"]`);

const badge = (status) => element("span", { class: `badge ${status}` }, status);

/** Follow a job from its first event to its last. */
async function watch(job) {
  watching.abort();
  const mine = (watching = new AbortController());
  const state = element("span", {}, badge(job.status));
  const remark = element("p", { class: "hint" });
  const outcome = element("div");
  const footage = job.type === "footage";
  const chart = chartOf(footage ? OF_BYTES : undefined);
  let result = job.result;
  const walks = footage ? timelineOf(() => result?.gallery ?? gallery()) : null;
  const cancel = element("button", { type: "button", class: "danger", hidden: FINAL.has(job.status),
    onclick: async () => {
      cancel.disabled = true;
      const done = await showing(outcome, () => call("POST", path`/jobs/${job.id}/cancel`));
      cancel.disabled = done;
    } }, "Cancel");
  const heading = element("h2", { tabindex: -1 }, `${job.type[0].toUpperCase()}${job.type.slice(1)} `, state);
  byId("job-detail").replaceChildren(element("div", { class: "card" },
    element("div", { class: "heading" }, heading, cancel),
    element("p", { class: "hint" }, "Job ", element("code", {}, job.id)), chart.node, remark, outcome, walks?.node ?? ""));
  heading.focus({ preventScroll: true });
  bringIntoView(heading);
  try {
    const lost = () => { remark.textContent = "The connection was lost; reconnecting …"; };
    const ended = (event) => event.kind === "status" && FINAL.has(event.data.status);
    for await (const event of follow(path`/jobs/${job.id}/events`, { signal: mine.signal, ended, lost })) {
      remark.textContent = "";
      chart.take(event);
      walks?.take(event);
      if (event.kind === "status") {
        state.replaceChildren(badge(event.data.status));
        announce(`The job is ${event.data.status}`);
        if (event.data.reason) remark.textContent = event.data.reason;
        if (ended(event)) {
          cancel.hidden = true;
          result = event.data.result ?? null;
          walks?.ended(result);
          outcome.replaceChildren(...outcomeOf(job.type, event.data));
        }
        const now = await call("GET", path`/jobs/${job.id}`, { signal: mine.signal });
        rowOf(job.id)?.replaceWith(jobRow(now));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") outcome.replaceChildren(problemNotice(error));
  }
}
