// The page Choose: evaluates the rules of model_cards/_choose.yml over the facts of the checkpoints, both in the page.
// The answers stand in the address, so that a choice can be shared. What comes before the export is pure; all else shows what it says.
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

  const asked = (questions, answers) => questions.filter((question) => question.rule && answers[question.id]);

  // Three groups: what fits, what may fit, what is left out with the one answer that would have to give, if it is one.
  // `elsewhere`: made for another task. `told`: by what the fits are ranked, or why they are not.
  function judge({ questions, candidates }, answers) {
    const groups = { fits: [], may: [], out: [] };
    const given = asked(questions, answers);
    for (const candidate of candidates) {
      const said = given.map((question) => ({ question, ...objection(question, answers[question.id], answers, candidate) }));
      const against = said.filter(({ no }) => no).map(({ question }) => question);
      const unknown = said.filter((each) => each.unknown).map((each) => each.unknown);
      if (!candidate.loads) unknown.unshift("no weights for this task are listed on its card");
      const elsewhere = against.some(({ id }) => id === "task");
      if (against.length) groups.out.push({ candidate, reasons: said.flatMap(({ no }) => no ?? []), against, elsewhere, relax: against.length === 1 && !elsewhere ? against[0] : null });
      else if (unknown.length) groups.may.push({ candidate, reasons: unknown });
      else groups.fits.push({ candidate, reasons: [] });
    }
    groups.told = ranking(groups.fits, answers);
    groups.fits = ranked(groups.fits, answers);
    groups.out.sort((a, b) => a.reasons.length - b.reasons.length);
    return groups;
  }

  // Where nothing fits or may: the fewest answers that would have to give, each way with how many it leaves.
  function ways({ fits, may, out }) {
    const found = new Map();
    for (const { against } of fits.length || may.length ? [] : out.filter((each) => each.against.length === out[0].against.length)) {
      const key = against.map(({ id }) => id).join();
      found.set(key, { questions: against, left: (found.get(key)?.left ?? 0) + 1 });
    }
    return [...found.values()].sort((a, b) => b.left - a.left);
  }

  // By what the fits are ranked: its name (none where it has to be asked for), the value of a candidate, of which less comes first
  // (none where it cannot be ranked), and what is said where values are missing. Figures rank only within the largest group that
  // was measured alike.
  function measure(fits, answers) {
    if (answers.by === "time") return { name: answers.device && `time on ${answers.device}`, value: ({ times }) => times[answers.device], lacking: "no known time on it", ask: "name the device that the time is for" };
    if (answers.by === "size") return { name: "size", value: ({ weights_gb }) => weights_gb, lacking: "no known size" };
    const figure = ({ quality }) => quality[answers.task];
    const group = (candidate) => figure(candidate) ? `${figure(candidate).label}${figure(candidate).group ? ` (${figure(candidate).group})` : ""}` : "";
    const sizes = new Map();
    fits.map(({ candidate }) => group(candidate)).filter(Boolean).forEach((each) => sizes.set(each, (sizes.get(each) ?? 0) + 1));
    const largest = [...sizes].sort((a, b) => b[1] - a[1])[0]?.[0];
    const signed = ({ better, value }) => better === "lower" ? value : -value;
    const value = (candidate) => largest && group(candidate) === largest ? signed(figure(candidate)) : null;
    return { name: answers.task && (largest ?? "accuracy"), value, lacking: "no figure measured alike", ask: "accuracy is that of a task; name one, or rank by size" };
  }

  // Those with a value first; they rank where there are two of them at least.
  function ranked(fits, answers) {
    const { value } = measure(fits, answers);
    const known = ({ candidate }) => Number.isFinite(value(candidate));
    const within = fits.filter(known).sort((a, b) => value(a.candidate) - value(b.candidate));
    return [...within.map((each) => ({ ...each, ranks: within.length > 1 })), ...fits.filter((each) => !known(each))];
  }

  function ranking(fits, answers) {
    const { name, value, lacking, ask } = measure(fits, answers);
    const known = fits.filter(({ candidate }) => Number.isFinite(value(candidate))).length;
    if (fits.length < 2) return "";
    if (!name) return `Not ranked: ${ask}.`;
    if (known < 2) return `Not ranked: ${known ? "all but one" : "all"} have ${lacking}.`;
    return known === fits.length ? `${known === 2 ? "Both" : `All ${known}`} are ranked by ${name}.` : `The first ${known} are ranked by ${name}; the others have ${lacking}.`;
  }

  // The best of what fits, by what a reader may care for; a tier that all share says nothing.
  function tiers(fits, answers) {
    const best = (values) => {
      const known = values.filter(([, value]) => value !== undefined && value !== null && value !== Infinity);
      return known.length > 1 ? known.reduce((a, b) => b[1] < a[1] ? b : a)[0] : null;
    };
    const terms = ({ candidate: { uses, gated } }) => Object.values(uses).filter((each) => each !== "yes").length + (gated ? 1 : 0);
    const accurate = ranked(fits, { ...answers, by: "" });
    const found = [
      [`most accurate${accurate.every(({ ranks }) => ranks) ? "" : " of those measured alike"}`, accurate.find(({ ranks }) => ranks) ?? null],
      ["fastest on this device", answers.device ? best(fits.map((each) => [each, each.candidate.times[answers.device]])) : null],
      ["smallest", best(fits.map((each) => [each, each.candidate.weights_gb]))],
      ["fewest terms", new Set(fits.map(terms)).size > 1 ? best(fits.map((each) => [each, terms(each)])) : null],
    ];
    return found.filter(([, each]) => each);
  }

  function left({ questions, candidates }, answers) {
    const given = asked(questions, answers);
    return candidates.filter((candidate) => given.every((question) => !objection(question, answers[question.id], answers, candidate).no));
  }

  // The options that are not to be had, each with the reason: with it nothing would be left, or no time of what is left is known.
  function closed(data, answers, question) {
    const facts = data.questions.filter(({ rule }) => rule?.of === question.id).map(({ rule }) => rule.fact);
    const why = (option) => {
      const remaining = left(data, { ...answers, [question.id]: option });
      if (!remaining.length) return "leaves nothing";
      return facts.some((fact) => remaining.every((candidate) => candidate[fact][option] === undefined)) ? "no time known" : "";
    };
    const others = (question.options ?? []).filter((option) => option !== answers[question.id]);
    return new Map(others.map((option) => [option, why(option)]).filter(([, reason]) => reason));
  }

  // Why a control cannot be used, or nothing: each of its answers is closed, or whatever it is set to, the same is left.
  function shut(data, answers, question) {
    const { id, rule, options } = question;
    if (answers[id]) return "";
    const remaining = left(data, answers);
    if (!remaining.length) return "nothing is left to narrow";
    const reasons = [...closed(data, answers, question).values()];
    if (options && reasons.length === options.length)
      return reasons.includes("leaves nothing") ? `${options.length === 1 ? options[0] : "any answer"} would leave nothing` : "no time of what is left is known";
    if (!rule) return "";
    if (rule.of && !answers[rule.of]) return shut(data, answers, data.questions.find((each) => each.id === rule.of));
    const narrows = (answer) => remaining.some((candidate) => objection(question, answer, answers, candidate).no);
    return !(options ?? ["0"]).some(narrows) ? "cannot narrow what is left" : "";
  }

  if (typeof module !== "undefined") { module.exports = { judge, tiers, ways, closed, shut }; return; } // for the tests
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

  const figure = ({ quality }, { task }) => task ? quality[task] : Object.values(quality)[0];

  function facts(candidate, answers) {
    const { model, name, tasks, parameters, macs, release } = candidate;
    const quality = figure(candidate, answers);
    const time = answers.device ? candidate.times[answers.device] : undefined;
    return [
      name.startsWith(model) ? "" : model, answers.task ? "" : tasks[0],
      quality ? `${quality.printed} ${quality.label}` : "",
      parameters ? `${parameters} parameters` : "", macs ? `${macs} MACs` : "",
      time === undefined ? "" : `${round(time)} ms`, release ? `weights: ${release}` : "",
    ].filter(Boolean).join(" · ");
  }

  // A button that takes answers back.
  function giveWay(questions, more = "") {
    const button = make("button", `Give way on: ${questions.map(({ ask }) => ask.replace(/\?$/, "")).join(" and ")}${more}`, { type: "button", class: "choose-relax" });
    button.addEventListener("click", () => {
      questions.forEach(({ id }) => { form.elements[id].value = ""; });
      update();
      form.elements[questions[0].id].focus();
    });
    return button;
  }

  function item({ candidate, reasons, relax }, answers) {
    const made = make("li", "", { "data-id": candidate.id });
    const known = facts(candidate, answers);
    made.append(link(candidate));
    if (known) made.append(make("small", ` ${known}`));
    const quality = figure(candidate, answers);
    if (quality && !reasons.length) made.append(" ", make("a", "source", { class: "cite", href: `../models/${candidate.slug}/#table-${quality.table}` }));
    if (reasons.length) made.append(make("span", `: ${reasons.join("; ")}. `));
    if (relax) made.append(giveWay([relax]));
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
    const say = (control, text) => { control.closest("label").querySelector(".choose-hint").textContent = text; };
    for (const control of controls) {
      const question = data.questions.find(({ id }) => id === control.name);
      const wrong = !control.validity.valid;
      const reason = question && !wrong ? shut(data, answers, question) : "";
      control.disabled = reason !== "";
      control.setAttribute("aria-invalid", wrong);
      say(control, wrong ? "not counted: it has to be a number from 0 on" : reason);
      const reasons = question ? closed(data, answers, question) : new Map();
      for (const option of control.options ?? []) {
        option.disabled = reasons.has(option.value);
        option.label = option.disabled ? `${option.value} (${reasons.get(option.value)})` : option.text;
      }
    }
    const { device, latency } = form.elements;
    if (answers.latency && !answers.device) say(latency, "not counted before a device is named");
    if (answers.device && !answers.latency && answers.by !== "time") say(device, "name a time, or rank by time");
    if ((answers.latency || answers.by === "time") && !answers.device && !device.disabled) say(device, "name the device that the time is for");
  }

  // The line that stays in sight: the first, where there is a first; else what one has to know.
  function headline({ fits, may }, found, answers) {
    if (found.length) return ["nothing meets all your answers: ", make("a", "what could give way", { href: "#choose-ways" })];
    if (!fits.length) return [`${may.length} may fit`];
    if (fits[0].ranks) return ["first: ", link(fits[0].candidate)];
    if (fits.length === 1) return ["the only one: ", link(fits[0].candidate)];
    return [Object.keys(answers).length ? "not ranked" : ""];
  }

  function update() {
    const given = controls.filter((control) => control.value !== "" && control.validity.valid);
    const answers = Object.fromEntries(given.map((control) => [control.name, control.value]));
    const query = new URLSearchParams(answers).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    hints(answers);
    const groups = judge(data, answers);
    const { fits } = groups;
    const found = ways(groups);
    by("choose-count").textContent = `${fits.length} of ${data.candidates.length} fit${fits.length === 1 ? "s" : ""}`;
    by("choose-top").replaceChildren(...headline(groups, found, answers));
    by("choose-ways").replaceChildren(...found.map(({ questions, left: count }) => giveWay(questions, ` (${count} left)`)));
    by("choose-fits").classList.toggle("choose-unranked", !fits[0]?.ranks);
    by("choose-ranked").textContent = found.length ? "Nothing meets all your answers." : fits.length ? groups.told : "Nothing fits for certain: of what may fit, a fact is not known.";
    by("choose-tiers").replaceChildren(...tiers(fits, answers).map(([tier, { candidate }]) => {
      const chip = make("span", `${tier}: `, { class: "chip" });
      chip.append(link(candidate));
      return chip;
    }));
    show(groups, answers);
  }

  // The three lists, and what goes with them.
  function show({ fits, may, out }, answers) {
    const list = (id, entries) => unfold(by(id), entries.map((each) => item(each, answers)));
    list("choose-fits", fits);
    list("choose-maybe", may);
    list("choose-out", out.filter((each) => !each.elsewhere));
    const elsewhere = out.filter((each) => each.elsewhere);
    by("choose-other").replaceChildren(...elsewhere.map((each) => item(each, answers)));
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
