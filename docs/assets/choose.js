// The page Choose: evaluates the rules of model_cards/_choose.yml over the facts of the models, both in the page.
// The answers stand in the address, so that a choice can be shared.
"use strict";
(() => {
  const form = document.getElementById("choose");
  const { questions, models } = JSON.parse(document.getElementById("choose-data").textContent);
  const params = new URLSearchParams(location.search);

  const make = (tag, text = "", attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };
  const round = (value) => Number(value.toPrecision(3));

  function told(fact, answer) {
    if (Array.isArray(fact)) return fact.join(", ");
    if (typeof fact === "object") return { terms: "they set terms", unclear: "what they say is unclear", no: "they exclude it" }[fact[answer]];
    return String(round(fact));
  }

  // Why an answer leaves a model out; "" where it does not.
  function objection(question, answer, answers, model) {
    const { fact: name, test, any, of } = question.rule;
    let fact = model[name];
    if (of !== undefined) {
      if (!answers[of]) return ""; // a time says nothing without the device
      fact = fact[answers[of]];
    }
    if (fact === null || fact === undefined) return question.unknown;
    const passes = {
      contains: () => (any ?? [answer]).some((each) => fact.includes(each)),
      at_most: () => fact <= Number(answer),
      allows: () => fact[answer] === "yes",
    }[test]();
    return passes ? "" : question.because.replace("{answer}", answer).replace("{fact}", told(fact, answer));
  }

  function choose(answers) {
    return models.map((model) => {
      const asked = questions.filter((question) => question.rule && answers[question.id]);
      return { model, reasons: asked.map((question) => objection(question, answers[question.id], answers, model)).filter(Boolean) };
    });
  }

  const controls = [...form.querySelectorAll("select, input")];
  controls.forEach((control) => { control.value = params.get(control.name) ?? ""; });

  const link = (model) => make("a", model.name, { href: `../models/${model.slug}/` });

  function update() {
    const answers = Object.fromEntries(controls.map((control) => [control.name, control.value]).filter(([, value]) => value !== ""));
    const query = new URLSearchParams(answers).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    const judged = choose(answers);
    const fits = judged.filter(({ reasons }) => !reasons.length);
    const out = judged.filter(({ reasons }) => reasons.length);
    document.getElementById("choose-count").textContent = `${fits.length} of ${models.length} models fit${fits.length === 1 ? "s" : ""}`;
    document.getElementById("choose-fits").replaceChildren(...fits.map(({ model }) => {
      const item = make("li", "", { "data-slug": model.slug });
      item.append(link(model), `: ${model.purpose}`);
      return item;
    }));
    const side = document.getElementById("choose-compare");
    side.hidden = fits.length < 2;
    side.href = `../compare/?m=${fits.slice(0, 4).map(({ model }) => model.slug).join(",")}`;
    side.textContent = fits.length > 4 ? "Compare the first four" : "Compare them";
    document.getElementById("choose-out").replaceChildren(...out.map(({ model, reasons }) => {
      const item = make("li", "", { "data-slug": model.slug });
      item.append(link(model), `: ${reasons.join("; ")}.`);
      return item;
    }));
    document.getElementById("choose-left").hidden = !out.length;
  }
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
  form.dataset.ready = "yes";
})();
