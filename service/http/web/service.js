// What the page knows of the service, and what its address says: calls, galleries, what is shown.

import { call, everything } from "./api.js";
import { byId, element } from "./dom.js";

export const galleryChoice = byId("gallery-choice");

/** The chosen gallery's name. */
export const gallery = () => galleryChoice.value || "default";

let description = { paths: {}, components: { schemas: {} } };
let galleries = [];

/** The galleries as last read. */
export const knownGalleries = () => galleries;

/** Whether the service has a call, by its OpenAPI document. */
export const has = (method, to) => Boolean(description.paths[to]?.[method.toLowerCase()]);

/** What a field of a request may be, by the OpenAPI document. */
export function allowed(schema, field) {
  const found = description.components.schemas[schema]?.properties[field] ?? {};
  return [found, ...(found.anyOf ?? [])].flatMap((one) => one.enum ?? []); // any of them, or null
}

/** Read what the service can do and which galleries it has. */
export async function learn() {
  description = await call("GET", "/openapi.json");
  byId("version").textContent = description.info.version;
  await learnGalleries();
}

/** Read the galleries again, and choose `wanted`, or keep what is chosen by then. */
export async function learnGalleries(wanted = null) {
  galleries = await everything("/galleries");
  const names = galleries.map((one) => one.name);
  if (!names.includes("default")) names.unshift("default");
  offer(galleryChoice, names, wanted ?? gallery());
}

/** Choose a gallery; returns false where there is none of this name. */
export function chooseGallery(name) {
  const known = galleries.some((one) => one.name === name);
  if (known) galleryChoice.value = name;
  return known;
}

/** Fill a `<select>` with values `inWords`, and choose `wanted` where it is offered. */
export function offer(select, values, wanted = select.value, inWords = String) {
  select.replaceChildren(...values.map((value) =>
    element("option", { value, selected: value === wanted }, inWords(value))));
}

/** A link's target, such as `#gallery/default/anna`. */
export const at = (...names) => `#${names.map(encodeURIComponent).join("/")}`;

/** The names in the address: the section first. */
export function named() {
  try {
    return location.hash.slice(1).split("/").map(decodeURIComponent);
  } catch { // somebody has typed it
    return [];
  }
}

/** Put names into the address without going there. */
export const keepAddress = (...names) => history.replaceState(null, "", at(...names));
