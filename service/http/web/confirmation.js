// Asking before something is gone for good.

import { byId } from "./dom.js";

/** Whether the person says `yes`; Escape and closing are no. */
export function confirmed(title, text, yes = "Delete") {
  const dialog = byId("confirm-dialog");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
