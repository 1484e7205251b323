// The page Compare: shows the columns of the chosen models, folds away what they share, and puts their numbers side by side.
// Numbers are ranked only within a group, which the build gives to those whose conditions agree (scripts/evidence/published.py).
"use strict";
(() => {
  const tables = [...document.querySelectorAll("table.compare")];
  const form = document.getElementById("compare-choice");
  const same = document.getElementById("compare-same");
  const section = document.getElementById("compare-numbers");
  const selects = [...form.querySelectorAll("select")];
  const known = new Set([...selects[0].options].map((option) => option.value).filter(Boolean));
  const listed = (text) => text.split(",").filter((slug) => known.has(slug));
  const asked = listed(new URLSearchParams(location.search).get("m") ?? "");
  const first = asked.length ? asked : listed(form.dataset.first);
  selects.forEach((select, i) => { select.value = first[i] ?? ""; });
  const slugs = [...tables[0].tHead.rows[0].cells].slice(1).map((cell) => cell.dataset.model);
  // the cells of each row by model, as they come
  const columns = new Map(tables.flatMap((table) => [...table.rows]).map((row) => [row, new Map([...row.cells].slice(1).map((cell, i) => [slugs[i], cell]))]));
  let data;

  const make = (tag, text = "", attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };
  const chosen = () => [...new Set(selects.map((select) => select.value).filter(Boolean))];

  function showColumns(models) {
    const shared = same.querySelector("tbody");
    shared.replaceChildren();
    for (const [row, byModel] of columns) {
      byModel.forEach((cell, slug) => { cell.hidden = !models.includes(slug); });
      const cells = models.map((slug) => byModel.get(slug));
      row.append(...cells); // in the order of the choice
      if (row.parentElement.tagName !== "TBODY") continue;
      const texts = cells.map((cell) => cell.textContent.trim());
      const pictures = cells.some((cell) => cell.querySelector("img"));
      row.hidden = !pictures && models.length > 1 && texts.every((text) => text === texts[0]);
      if (row.hidden && texts[0]) {
        const line = make("tr");
        line.append(make("th", row.cells[0].textContent, { scope: "row" }), make("td", texts[0]));
        shared.append(line);
      }
      markDifferences(row, cells);
    }
    same.hidden = !shared.rows.length;
  }

  function markDifferences(row, cells) { // in lists of words: what not all of them have
    if (row.cells[0].textContent !== "Tasks") return;
    const lists = cells.map((cell) => cell.textContent.trim().split(", "));
    cells.forEach((cell, i) => cell.replaceChildren(...lists[i].flatMap((word, k) =>
      [k ? ", " : "", lists.every((list) => list.includes(word)) ? word : make("mark", word)])));
  }

  const SIZES = ["size", "compute"];
  const better = (metric) => (data.metrics[metric].better === "higher" ? -1 : 1);
  const best = (numbers) => [...numbers].sort((a, b) => better(a.metric) * (a.value - b.value))[0];
  const told = (conditions) => Object.entries(conditions).map(([name, text]) => `${name} ${text}`).join(", ") || "no further conditions given";

  function differing(numbers) {
    const names = new Set(numbers.flatMap((number) => Object.keys(number.conditions)));
    return [...names].filter((name) => new Set(numbers.map((number) => number.conditions[name] ?? "")).size > 1);
  }

  const link = (number, slug) => make("a", number.printed, { href: `../models/${slug}/#table-${number.table}`, title: number.where });

  function cell(number, slug, winner) {
    const made = make("td");
    if (!number) return made;
    const { parameters, macs } = number.cost;
    made.append(winner ? make("strong") : "", make("br"), make("small", [number.variant, parameters, macs].filter(Boolean).join(", ")));
    (winner ? made.firstChild : made).prepend(link(number, slug));
    return made;
  }

  function heading(text, models) {
    const head = make("tr", "", { class: "conditions" });
    head.append(make("th", text, { scope: "rowgroup", colspan: models.length + 1 }));
    return head;
  }

  function sizes(body, byModel, models) { // no contest: the least system of each model and its largest
    body.append(line("smallest and largest system", models, (slug) => {
      const made = make("td");
      const sorted = [...(byModel.get(slug) ?? [])].sort((a, b) => a.value - b.value);
      const ends = sorted.length ? [...new Set([sorted[0], sorted.at(-1)])] : [];
      ends.forEach((number, i) => {
        const conditions = Object.values(number.conditions).join(", ");
        made.append(i ? make("br") : "", link(number, slug), " ", make("small", number.variant + (conditions && ` (${conditions})`)));
      });
      return made;
    }));
    return body;
  }

  function times(models) { // of all that was timed here on one device at one input
    const keys = new Set(models.flatMap((slug) => Object.keys(data.timed[slug] ?? {})));
    const shared = [...keys].filter((key) => models.filter((slug) => data.timed[slug]?.[key]).length > 1);
    if (!shared.length) return [];
    const body = make("tbody");
    body.append(heading("Timed here, with random weights", models));
    body.append(...shared.map((key) => line(key, models, (slug) => make("td", data.timed[slug]?.[key] ?? ""))));
    return [body];
  }

  function benchmark(metric, on, byModel, models) {
    const body = make("tbody");
    const words = data.metrics[metric];
    body.append(heading(`${words.label}${words.unit ? ` (${words.unit})` : ""}${on ? ` on ${on}` : ""}`, models));
    if (SIZES.includes(words.kind)) return sizes(body, byModel, models);
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
      body.append(line(told(values[0].conditions), models, (slug) => cell(group.get(slug), slug, words.kind === "quality" && group.get(slug)?.value === top)));
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
    const shared = [...found].filter(([, byModel]) => byModel.size > 1).map(([key, byModel]) => [...JSON.parse(key), byModel]);
    const of = (...kinds) => shared.filter(([metric]) => kinds.includes(place(data.metrics[metric]))).map((each) => benchmark(...each, models));
    const bodies = [...of("headline"), ...times(models), ...of("speed"), ...of(...SIZES)];
    const further = of("quality", "memory");
    section.replaceChildren(make("h2", "Numbers"), make("p", bodies.length + further.length
      ? "The best published figure of each model with its system, its parameters and its MACs. Accuracy is ranked (bold: the best) only where the conditions agree; where they do not, the figures stand beside each other with what differs."
      : "These models have no published figure of the same measure on the same data."));
    if (bodies.length) section.append(sideBySide("Numbers side by side", bodies, models));
    if (!further.length) return;
    const more = make("details", "", { class: "results" });
    more.append(make("summary", `Further measures (${further.length})`), sideBySide("Further measures side by side", further, models));
    section.append(more);
  }

  const place = (metric) => (metric.headline ? "headline" : metric.kind);

  function sideBySide(title, bodies, models) {
    const names = make("tr");
    names.append(make("th", "Under which conditions", { scope: "col" }), ...models.map((slug) => make("th", data.names[slug], { scope: "col" })));
    const head = make("thead");
    head.append(names);
    const numbers = make("table", "", { class: "data compare" });
    numbers.append(head, ...bodies);
    const scroll = make("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": title });
    scroll.append(numbers);
    return scroll;
  }

  // What stands below the numbers comes after them, so that nothing moves.
  async function update() {
    const models = chosen();
    history.replaceState(null, "", models.length ? `?m=${models.join(",")}` : location.pathname);
    showColumns(models);
    tables[0].dataset.ready = "yes";
    await showNumbers(models);
    tables[1].dataset.ready = "yes";
  }
  form.addEventListener("change", update);
  update();
})();
