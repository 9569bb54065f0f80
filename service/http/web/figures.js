// Numbers as people read them.

/** A number in a few characters. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** A rate between 0 and 1 in per cent. */
export const percent = (rate) => `${Number((100 * rate).toPrecision(3))} %`;

/** So many of a thing. */
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

/** A moment, by this device's clock. */
export const moment = (stamp) => new Date(stamp).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
