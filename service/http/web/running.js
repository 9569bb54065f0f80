// A job that is followed where it was asked for: a bar until it ends, then what came of it.

import { call, path } from "./api.js";
import { announce, element } from "./dom.js";
import { follow } from "./events.js";
import { problemNotice } from "./problem.js";

/** The states that a job does not leave. */
export const FINAL = new Set(["succeeded", "failed", "cancelled"]);

/**
 * Runs jobs in `place`, one at a time: `{run(to, json, shown), leave()}`.
 *
 * `what` names the job in sentences; `busy(yes)` is told when another must not be started. `run`
 * shows `shown(result)` at the end, and tells whether the job succeeded; whoever leaves the place
 * finds the job among the others.
 */
export function runner(place, what, busy) {
  let watching = new AbortController();

  async function run(to, json, shown) {
    watching.abort();
    const mine = (watching = new AbortController());
    const signal = mine.signal;
    const bar = element("progress", { max: 1, "aria-label": `Progress of the ${what}` });
    place.replaceChildren(bar);
    busy(true);
    try {
      const { id } = await call("POST", to, { json, signal });
      const ended = (event) => event.kind === "status" && FINAL.has(event.data.status);
      for await (const event of follow(path`/jobs/${id}/events`, { signal, ended })) {
        const { step, total_steps } = event.data;
        if (event.kind === "progress" && total_steps) bar.value = step / total_steps;
      }
      if (signal.aborted) return false;
      const job = await call("GET", path`/jobs/${id}`, { signal });
      const succeeded = job.status === "succeeded";
      place.replaceChildren(...(succeeded ? [shown(job.result)] : [failure(job)]).filter(Boolean));
      announce(`The ${what} has ${succeeded ? "ended" : job.status}`);
      return succeeded;
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(problemNotice(error));
      return false;
    } finally {
      if (watching === mine) busy(false);
    }
  }

  function leave() {
    watching.abort();
    busy(false);
    place.replaceChildren();
  }

  return { run, leave };
}

/** Why a job has not succeeded. */
export function failure({ status, error }) {
  return element("div", { class: "notice bad", role: "alert" },
    element("strong", {}, status === "cancelled" ? "The job was cancelled" : "The job failed"),
    element("p", {}, error ?? (status === "cancelled" ? "Nothing was changed." : "The service’s log says why.")));
}
