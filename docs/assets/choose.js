// The page Choose: evaluates the rules of model_cards/_choose.yml over the facts of the checkpoints, both in the page.
// The answers stand in the address, so that a choice can be shared. `judge` is pure; all else shows what it says.
"use strict";
(() => {
  const MOST = 10; // checkpoints of a group that are shown at first (site.css hides the others)
  const round = (value) => Number(value.toPrecision(3));

  function told(fact, answer) {
    if (Array.isArray(fact)) return fact.join(", ");
    if (typeof fact === "object") return { terms: "they set terms", unclear: "what they say is unclear", no: "they exclude it" }[fact[answer]];
    return String(round(fact));
  }

  // What an answer says of a candidate: {} where it passes, {no} where it is left out, {unknown} where a fact is missing.
  function objection(question, answer, answers, candidate) {
    const { fact: name, test, any, of } = question.rule;
    let fact = candidate[name];
    if (of !== undefined) {
      if (!answers[of]) return {}; // the page asks for the other one
      fact = fact[answers[of]];
    }
    if (fact === null || fact === undefined) return { unknown: question.unknown };
    const passes = {
      contains: () => (any ?? [answer]).some((each) => fact.includes(each)),
      at_most: () => fact <= Number(answer),
      allows: () => fact[answer] === "yes",
    }[test]();
    return passes ? {} : { no: question.because.replace("{answer}", answer).replace("{fact}", told(fact, answer)) };
  }

  // Three groups: what fits, what may fit, what is left out with the one answer that would have to give, if it is one.
  function judge({ questions, candidates }, answers) {
    const asked = questions.filter((question) => question.rule && answers[question.id]);
    const groups = { fits: [], may: [], out: [] };
    for (const candidate of candidates) {
      const said = asked.map((question) => ({ question, ...objection(question, answers[question.id], answers, candidate) }));
      const against = said.filter(({ no }) => no);
      const unknown = said.filter((each) => each.unknown).map((each) => each.unknown);
      if (!candidate.loads) unknown.unshift("no weights for this task are listed on its card");
      const elsewhere = against.some(({ question }) => question.rule.fact === "tasks");
      if (against.length) groups.out.push({ candidate, reasons: against.map(({ no }) => no), relax: against.length === 1 ? against[0].question : null, elsewhere });
      else if (unknown.length) groups.may.push({ candidate, reasons: unknown });
      else groups.fits.push({ candidate, reasons: [] });
    }
    groups.fits = ranked(groups.fits, answers);
    groups.out.sort((a, b) => a.reasons.length - b.reasons.length);
    return groups;
  }

  // The figure that ranks: only within the largest group of figures that were measured alike; the others follow unranked.
  function ranked(fits, answers) {
    const value = {
      time: ({ candidate }) => candidate.times[answers.device] ?? Infinity,
      size: ({ candidate }) => candidate.weights_gb ?? Infinity,
    }[answers.by];
    if (value) return [...fits].sort((a, b) => value(a) - value(b));
    const sizes = new Map();
    const group = ({ candidate: { quality } }) => quality ? `${quality.label}|${quality.group}` : "";
    fits.filter(group).forEach((each) => sizes.set(group(each), (sizes.get(group(each)) ?? 0) + 1));
    const largest = [...sizes].sort((a, b) => b[1] - a[1])[0]?.[0];
    const sign = ({ quality }) => quality.better === "lower" ? 1 : -1;
    const within = fits.filter((each) => largest && group(each) === largest).map((each) => ({ ...each, ranks: true }));
    within.sort((a, b) => sign(a.candidate) * (a.candidate.quality.value - b.candidate.quality.value));
    return [...within, ...fits.filter((each) => !largest || group(each) !== largest)];
  }

  // The best of what fits, by what a reader may care for; a tier that all share says nothing.
  function tiers(fits, answers) {
    const best = (values) => {
      const known = values.filter(([, value]) => value !== undefined && value !== null && value !== Infinity);
      return known.length > 1 ? known.reduce((a, b) => b[1] < a[1] ? b : a)[0] : null;
    };
    const terms = ({ candidate: { uses, gated } }) => Object.values(uses).filter((each) => each !== "yes").length + (gated ? 1 : 0);
    const found = [
      ["most accurate", fits.find(({ ranks }) => ranks) ?? null],
      ["fastest on this device", answers.device ? best(fits.map((each) => [each, each.candidate.times[answers.device]])) : null],
      ["smallest", best(fits.map((each) => [each, each.candidate.weights_gb]))],
      ["fewest terms", new Set(fits.map(terms)).size > 1 ? best(fits.map((each) => [each, terms(each)])) : null],
    ];
    return found.filter(([, each]) => each);
  }

  // What a control cannot change any more: whatever it is set to, the same candidates are left.
  function idle({ questions, candidates }, answers, question) {
    if (!question.rule || answers[question.id]) return false;
    const alive = judge({ questions, candidates }, answers);
    const left = [...alive.fits, ...alive.may].map(({ candidate }) => candidate);
    const tries = question.options ?? ["0"];
    return left.length > 0 && !tries.some((answer) => left.some((candidate) => objection(question, answer, answers, candidate).no));
  }

  if (typeof module !== "undefined") { module.exports = { judge, tiers, idle }; return; } // for the tests
  const form = document.getElementById("choose");
  const data = JSON.parse(document.getElementById("choose-data").textContent);
  const params = new URLSearchParams(location.search);
  const make = (tag, text = "", attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };
  const by = (id) => document.getElementById(id);
  const controls = [...form.querySelectorAll("select, input")];
  controls.forEach((control) => {
    control.value = params.get(control.name) ?? "";
    if (control.selectedIndex === -1) control.value = ""; // an answer in an old link that is no longer offered
  });
  const link = ({ slug, name }) => make("a", name, { href: `../models/${slug}/` });

  function facts(candidate, answers) {
    const { quality, model, name, parameters, macs, release } = candidate;
    const time = answers.device ? candidate.times[answers.device] : undefined;
    return [
      name.startsWith(model) ? "" : model,
      quality ? `${quality.printed} ${quality.label}` : "",
      parameters ? `${parameters} parameters` : "", macs ? `${macs} MACs` : "",
      time === undefined ? "" : `${round(time)} ms`, release ? `weights: ${release}` : "",
    ].filter(Boolean).join(" · ");
  }

  function item({ candidate, reasons, relax }, answers) {
    const made = make("li", "", { "data-id": candidate.id });
    const known = facts(candidate, answers);
    made.append(link(candidate));
    if (known) made.append(make("small", ` ${known}`));
    if (candidate.quality?.where && !reasons.length) made.append(" ", make("a", "source", { class: "cite", href: `../models/${candidate.slug}/#table-${candidate.quality.table}` }));
    if (reasons.length) made.append(make("span", `: ${reasons.join("; ")}. `));
    if (relax) {
      const button = make("button", `Give way on: ${relax.ask.replace(/\?$/, "")}`, { type: "button", class: "choose-relax" });
      button.addEventListener("click", () => { form.elements[relax.id].value = ""; update(); form.elements[relax.id].focus(); });
      made.append(button);
    }
    return made;
  }

  // The first few of a list; a button shows the others.
  function unfold(list, items) {
    list.replaceChildren(...items);
    list.parentElement.querySelector(".choose-all")?.remove();
    list.classList.toggle("choose-few", items.length > MOST);
    if (items.length <= MOST) return;
    const button = make("button", `Show the other ${items.length - MOST}`, { type: "button", class: "choose-relax choose-all" });
    button.addEventListener("click", () => { list.classList.remove("choose-few"); button.remove(); items[MOST].querySelector("a").focus(); });
    list.after(button);
  }

  function hints(answers) {
    for (const control of controls) {
      const question = data.questions.find(({ id }) => id === control.name);
      const hint = control.closest("label").querySelector(".choose-hint");
      const dead = question ? idle(data, answers, question) : false;
      control.disabled = dead;
      hint.textContent = dead ? "cannot narrow what is left" : "";
    }
    const hint = (name, text) => { form.elements[name].closest("label").querySelector(".choose-hint").textContent = text; };
    if (answers.latency && !answers.device) hint("device", "name the device that the time is for");
    if (answers.device && !answers.latency && answers.by !== "time") hint("latency", "name a time, or rank by time");
    if (answers.by === "time" && !answers.device) hint("device", "name the device to rank by time");
  }

  function update() {
    const answers = Object.fromEntries(controls.map((control) => [control.name, control.value]).filter(([, value]) => value !== ""));
    const query = new URLSearchParams(answers).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    const { fits, may, out } = judge(data, answers);
    hints(answers);
    by("choose-count").textContent = `${fits.length} of ${data.candidates.length} fit${fits.length === 1 ? "s" : ""}`;
    by("choose-top").replaceChildren(...(fits.length && Object.keys(answers).length ? ["first: ", link(fits[0].candidate)] : [may.length ? `${may.length} may fit` : ""]));
    const ranks = fits.filter((each) => each.ranks).length;
    by("choose-ranked").textContent = answers.by === "time" ? `Ranked by time on ${answers.device ?? "a device that is yet to be named"}.` : answers.by === "size" ? "Ranked by size."
      : ranks > 1 ? `The first ${ranks} are ranked by ${fits[0].candidate.quality.label}${fits[0].candidate.quality.group ? ` (${fits[0].candidate.quality.group})` : ""}; the others have no figure measured alike.` : fits.length > 1 ? "Not ranked: no figures measured alike." : "";
    by("choose-tiers").replaceChildren(...tiers(fits, answers).map(([tier, { candidate }]) => {
      const chip = make("span", `${tier}: `, { class: "chip" });
      chip.append(link(candidate));
      return chip;
    }));
    const show = (id, entries) => unfold(by(id), entries.map((each) => item(each, answers)));
    show("choose-fits", fits);
    show("choose-maybe", may);
    const elsewhere = out.filter((each) => each.elsewhere);
    show("choose-out", out.filter((each) => !each.elsewhere));
    by("choose-other").replaceChildren(...elsewhere.map((each) => item({ ...each, relax: null }, answers)));
    by("choose-elsewhere").hidden = !elsewhere.length;
    by("choose-elsewhere-count").textContent = elsewhere.length;
    by("choose-may").hidden = !may.length;
    by("choose-left").hidden = !out.length;
    const slugs = [...new Set([...fits, ...may].map(({ candidate }) => candidate.slug))];
    by("choose-compare").hidden = slugs.length < 2;
    by("choose-compare").href = `../compare/?m=${slugs.slice(0, 4).join(",")}`;
  }
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
  form.dataset.ready = "yes";
})();
