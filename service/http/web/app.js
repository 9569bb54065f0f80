// The page: which section is shown, which gallery is chosen, the API key, how the service is.

import { leaveActivation } from "./activation.js";
import { call, key } from "./api.js";
import { byId } from "./dom.js";
import { startEnrolment } from "./enrolment.js";
import { leaveGallery, openSubject, showGallery, startGallery } from "./gallery.js";
import { startIdentification } from "./identification.js";
import { leaveJobs, openJob, showJobs, startJobs } from "./jobs.js";
import { showModels, startModels } from "./models.js";
import { showing } from "./problem.js";
import { galleryChoice, keepAddress, learn, named } from "./service.js";

const sections = {
  identify: {},
  enrol: {},
  gallery: { show: showGallery, open: openSubject, leave: leaveGallery },
  jobs: { show: showJobs, open: openJob, leave: leaveJobs },
  models: { show: showModels, leave: leaveActivation },
};
let shown = null;

/** Show the section that the address names, and the subject or job in it. */
async function go({ focus = true } = {}) {
  const [name, ...names] = named();
  if (name === "main") return; // the link that skips the navigation
  const wanted = name in sections ? name : "identify";
  if (shown) sections[shown].leave?.();
  shown = wanted;
  for (const section of Object.keys(sections)) byId(section).hidden = section !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`${wanted}-title`).textContent} · GaitID`;
  if (focus) byId(`${wanted}-title`).focus();
  await sections[wanted].show?.();
  if (names.length && shown === wanted) await sections[wanted].open?.(...names);
}

function follow() {
  const [name, ...names] = named();
  if (name === shown && names.length) sections[shown].open?.(...names); // the section is as it was
  else go();
}

async function greet() {
  byId("service-problem").replaceChildren();
  await showing(byId("service-problem"), learn);
  try {
    const { model } = await call("GET", "/readyz");
    byId("ready").textContent = `ready, model ${model.name}`;
  } catch (error) {
    byId("ready").textContent = error.detail || error.title;
  }
}

function askForKey() {
  if (byId("key-dialog").open) return;
  byId("key-field").value = "";
  byId("key-dialog").returnValue = "close";
  byId("key-dialog").showModal();
}

function labelKeyButton() {
  byId("key-button").textContent = key.get() ? "API key ✓" : "API key";
}

byId("key-button").addEventListener("click", askForKey);
byId("key-dialog").addEventListener("close", async () => {
  const choice = byId("key-dialog").returnValue;
  const given = byId("key-field").value.trim();
  byId("key-field").value = "";
  if (choice === "close" || (choice === "use" && !given)) return;
  key.set(choice === "use" ? given : "");
  labelKeyButton();
  await greet();
  go({ focus: false });
});
addEventListener("key-needed", askForKey);
addEventListener("hashchange", follow);
galleryChoice.addEventListener("change", () => {
  if (!shown) return; // nothing is shown until it is ready
  if (shown === "gallery") keepAddress(shown); // its subjects are another gallery's
  sections[shown].show?.();
});
// A walk dropped beside its field would otherwise replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

startIdentification();
startEnrolment();
startGallery();
startJobs();
startModels();
labelKeyButton();
await greet();
go({ focus: false });
