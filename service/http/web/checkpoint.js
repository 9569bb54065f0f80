// Adding a model: the two files of a checkpoint.

import { call } from "./api.js";
import { announce, byId, element } from "./dom.js";
import { showing } from "./problem.js";

/** Make the form work; `added` is called once there is a model more. */
export function startCheckpoints(added) {
  const form = byId("checkpoint-form");
  const button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { name, weights, card } = form.elements;
    const sent = new FormData();
    sent.set("name", name.value);
    sent.set("weights", weights.files[0]);
    sent.set("card", card.files[0]);
    const place = byId("checkpoint-result");
    button.disabled = true;
    await showing(place, async () => {
      const model = await call("POST", "/models", { body: sent });
      form.reset();
      await added();
      place.replaceChildren(element("p", { class: "notice", role: "status" },
        "Added ", element("strong", {}, model.name), ". No gallery uses it yet."));
      announce(`The model ${model.name} is added`);
    });
    button.disabled = false;
  });
}
