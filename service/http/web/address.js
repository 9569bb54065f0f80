// The part of the address after `#`: a section of the page, and what is shown in it.

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
