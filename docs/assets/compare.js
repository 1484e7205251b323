// The page Compare: shows the columns of the chosen models, folds away what they share, and puts their numbers side by side.
// Numbers are ranked only within a group, which the build gives to those whose conditions agree (scripts/evidence/published.py).
"use strict";
(() => {
  const table = document.getElementById("compare");
  const form = document.getElementById("compare-choice");
  const same = document.getElementById("compare-same");
  const section = document.getElementById("compare-numbers");
  const selects = [...form.querySelectorAll("select")];
  const known = new Set([...selects[0].options].map((option) => option.value).filter(Boolean));
  const asked = (new URLSearchParams(location.search).get("m") ?? "").split(",").filter((slug) => known.has(slug));
  const first = asked.length ? asked : ["detr", "faster-rcnn"].filter((slug) => known.has(slug));
  selects.forEach((select, i) => { select.value = first[i] ?? ""; });
  const rows = [...table.tBodies[0].rows];
  let data;

  const make = (tag, text = "", attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };
  const chosen = () => [...new Set(selects.map((select) => select.value).filter(Boolean))];

  function showColumns(models) {
    table.querySelectorAll("[data-model]").forEach((cell) => { cell.hidden = !models.includes(cell.dataset.model); });
    for (const row of [table.tHead.rows[0], ...rows]) { // the columns in the order of the choice
      const cells = new Map([...row.cells].filter((cell) => cell.dataset.model).map((cell) => [cell.dataset.model, cell]));
      row.append(...models.map((slug) => cells.get(slug)));
    }
    const shared = same.querySelector("tbody");
    shared.replaceChildren();
    for (const row of rows) {
      const cells = models.map((slug) => [...row.cells].find((cell) => cell.dataset.model === slug));
      const texts = cells.map((cell) => cell.textContent.trim());
      const pictures = cells.some((cell) => cell.querySelector("img"));
      row.hidden = !pictures && models.length > 1 && texts.every((text) => text === texts[0]);
      if (row.hidden && texts[0]) {
        const line = make("tr");
        line.append(make("th", row.cells[0].textContent, { scope: "row" }), make("td", texts[0]));
        shared.append(line);
      }
      markDifferences(row, models);
    }
    same.hidden = !shared.rows.length;
  }

  function markDifferences(row, models) { // in lists of words: what not all of them have
    if (row.cells[0].textContent !== "Tasks") return;
    const cells = models.map((slug) => [...row.cells].find((cell) => cell.dataset.model === slug));
    const lists = cells.map((cell) => cell.textContent.trim().split(", "));
    cells.forEach((cell, i) => cell.replaceChildren(...lists[i].flatMap((word, k) =>
      [k ? ", " : "", lists.every((list) => list.includes(word)) ? word : make("mark", word)])));
  }

  const better = (metric) => (data.metrics[metric].better === "higher" ? -1 : 1);
  const best = (numbers) => [...numbers].sort((a, b) => better(a.metric) * (a.value - b.value))[0];
  const told = (conditions) => Object.entries(conditions).map(([name, text]) => `${name} ${text}`).join(", ") || "no further conditions given";

  function differing(numbers) {
    const names = new Set(numbers.flatMap((number) => Object.keys(number.conditions)));
    return [...names].filter((name) => new Set(numbers.map((number) => number.conditions[name] ?? "")).size > 1);
  }

  function cell(number, slug, winner) {
    const made = make("td");
    if (!number) return made;
    const link = make("a", number.printed, { href: `../models/${slug}/#table-${number.table}`, title: number.where });
    made.append(winner ? make("strong") : "", make("br"), make("small", number.variant));
    (winner ? made.firstChild : made).prepend(link);
    return made;
  }

  function benchmark(metric, on, byModel, models) {
    const body = make("tbody");
    const head = make("tr", "", { class: "conditions" });
    const words = data.metrics[metric];
    head.append(make("th", `${words.label}${words.unit ? ` (${words.unit})` : ""}${on ? ` on ${on}` : ""}`, { scope: "rowgroup", colspan: models.length + 1 }));
    body.append(head);
    const groups = new Map();
    models.forEach((slug) => byModel.get(slug)?.forEach((number) => {
      if (!groups.has(number.group)) groups.set(number.group, new Map());
      const group = groups.get(number.group);
      group.set(slug, best([...(group.get(slug) ? [group.get(slug)] : []), number]));
    }));
    const fair = [...groups.values()].filter((group) => group.size > 1);
    for (const group of fair) {
      const values = [...group.values()];
      const top = best(values).value;
      body.append(line(told(values[0].conditions), models, (slug) => cell(group.get(slug), slug, group.get(slug)?.value === top)));
    }
    const alone = models.filter((slug) => byModel.has(slug) && !fair.some((group) => group.has(slug)));
    if (alone.length) {
      const tops = new Map(models.filter((slug) => byModel.has(slug)).map((slug) => [slug, best(byModel.get(slug))]));
      const names = differing([...tops.values()]);
      body.append(line(`not ranked: ${names.join(", ") || "conditions"} differ`, models, (slug) => {
        const number = tops.get(slug);
        const made = cell(number, slug, false);
        if (number) made.append(make("br"), make("small", told(Object.fromEntries(names.map((name) => [name, number.conditions[name] ?? "not given"])))));
        return made;
      }));
    }
    return body;
  }

  function line(title, models, content) {
    const row = make("tr");
    row.append(make("th", title, { scope: "row" }), ...models.map(content));
    return row;
  }

  // From a disk a browser loads scripts alone: there the archive has the same data as one (scripts/site/archive.py).
  async function read(address) {
    if (location.protocol !== "file:") return (await fetch(address)).json();
    const script = document.createElement("script");
    script.src = `${address}.js`;
    await new Promise((resolve, reject) => { Object.assign(script, { onload: resolve, onerror: reject }); document.head.append(script); });
    return window.fromDisk;
  }

  // On a slow line the pictures, which stand higher, come first.
  const arrived = document.readyState === "complete" ? Promise.resolve() : new Promise((resolve) => { addEventListener("load", resolve, { once: true }); });

  async function showNumbers(models) {
    await arrived;
    try {
      data ??= await read(section.dataset.source);
    } catch {
      section.replaceChildren(make("p", "The numbers could not be loaded."));
      return;
    }
    if (models.join() !== chosen().join()) return; // the choice changed while the numbers were on their way
    const found = new Map();
    for (const slug of models) for (const number of data.numbers[slug]) {
      const key = JSON.stringify([number.metric, number.on]);
      if (!found.has(key)) found.set(key, new Map());
      if (!found.get(key).has(slug)) found.get(key).set(slug, []);
      found.get(key).get(slug).push(number);
    }
    const shared = [...found].filter(([, byModel]) => byModel.size > 1);
    section.replaceChildren(make("h2", "Numbers"), make("p", shared.length
      ? "The best published figure of each model, ranked (bold: the best) only where the conditions agree. Where they do not, the figures stand beside each other with what differs."
      : "These models have no published figure of the same measure on the same data."));
    if (!shared.length) return;
    const head = make("thead");
    const names = make("tr");
    names.append(make("th", "Under which conditions", { scope: "col" }), ...models.map((slug) => make("th", data.names[slug], { scope: "col" })));
    head.append(names);
    const numbers = make("table", "", { class: "data" });
    numbers.append(head, ...shared.map(([key, byModel]) => benchmark(...JSON.parse(key), byModel, models)));
    const scroll = make("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers side by side" });
    scroll.append(numbers);
    section.append(scroll);
  }

  function update() {
    const models = chosen();
    history.replaceState(null, "", models.length ? `?m=${models.join(",")}` : location.pathname);
    showColumns(models);
    showNumbers(models);
  }
  form.addEventListener("change", update);
  update();
  table.dataset.ready = "yes";
})();
