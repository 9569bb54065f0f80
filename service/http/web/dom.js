// Elements without a framework. Text is always set as text, so nothing a server says becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (`on…` are listeners, false and null leave one out) and children. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same, in an SVG picture. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A name and what it is, for a `<dl>`. */
export function entry(name, ...value) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, ...value));
}

/** Tell a screen reader what just happened. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Do something once a node comes into sight: a long list fetches only what is looked at. */
export function whenSeen(node, work) {
  const observer = new IntersectionObserver((changes) => {
    if (!changes.some((change) => change.isIntersecting)) return;
    observer.disconnect();
    work();
  }, { rootMargin: "50%" });
  observer.observe(node);
}

const oneColumn = matchMedia("(max-width: 56rem)"); // as in style.css

/** Scroll to what was just answered: on a phone it lies below what was asked. */
export function bringIntoView(node) {
  node.scrollIntoView({ block: oneColumn.matches ? "start" : "nearest" });
}

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
