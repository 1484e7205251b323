// Tables that can be sorted and filtered. A page works without this file: it then shows every row in its first order.
//   <table class="browse"> ... <th data-filter="one">  a choice among the values of the column; a cell may list several in data-value, apart by |
//                              <th data-sort>          a button that sorts by data-value, or by the text of the cells
// The state stands in the address (?task=...&q=...&sort=-year), so that a view can be shared.
"use strict";
(() => {
  const slug = (text) => text.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  const value = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const element = (tag, properties = {}, children = []) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  function browse(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const rows = [...table.tBodies[0].rows];
    const names = heads.map((head) => slug(head.textContent));
    const asked = new URLSearchParams(location.search);
    const state = { q: asked.get("q") ?? "", sort: asked.get("sort") ?? "", picks: new Map() };
    const count = element("output", { className: "browse-count" });
    count.setAttribute("aria-live", "polite");
    const form = element("form", { className: "browse-controls" });
    form.setAttribute("role", "search");
    form.setAttribute("aria-label", `Filter the table: ${table.caption?.textContent ?? ""}`);
    form.addEventListener("submit", (event) => event.preventDefault());

    const text = element("input", { type: "search", value: state.q, autocomplete: "off" });
    text.addEventListener("input", () => { state.q = text.value; update(); });
    form.append(element("label", {}, ["Contains ", text]));
    heads.forEach((head, column) => {
      if (!("filter" in head.dataset)) return;
      const values = [...new Set(rows.flatMap((row) => value(row.cells[column]).split("|")))].filter(Boolean).sort();
      const select = element("select", {}, [element("option", { value: "", textContent: "any" }),
        ...values.map((each) => element("option", { value: each, textContent: each }))]);
      select.value = values.includes(asked.get(names[column])) ? asked.get(names[column]) : "";
      state.picks.set(column, select.value);
      select.addEventListener("change", () => { state.picks.set(column, select.value); update(); });
      form.append(element("label", {}, [`${head.textContent.trim()} `, select]));
    });
    heads.forEach((head, column) => {
      if (!("sort" in head.dataset)) return;
      const button = element("button", { type: "button", className: "browse-sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        state.sort = state.sort === names[column] ? `-${names[column]}` : names[column];
        update();
      });
    });
    const clear = element("button", { type: "button", textContent: "Show all" });
    clear.addEventListener("click", () => {
      state.q = text.value = "";
      form.querySelectorAll("select").forEach((select) => { select.value = ""; });
      state.picks.forEach((_, column) => state.picks.set(column, ""));
      update();
    });
    form.append(clear, count);
    table.closest(".scroll").before(form);

    function matches(row) {
      const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
      const content = row.textContent.toLowerCase();
      return words.every((word) => content.includes(word)) &&
        [...state.picks].every(([column, pick]) => !pick || value(row.cells[column]).split("|").includes(pick));
    }

    function sorted() {
      const descending = state.sort.startsWith("-");
      const column = names.indexOf(state.sort.replace(/^-/, ""));
      heads.forEach((head, i) => head.ariaSort = i !== column ? null : descending ? "descending" : "ascending");
      if (column < 0) return rows;
      const compare = (a, b) => {
        const [x, y] = [a, b].map((row) => value(row.cells[column]));
        if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stands last, either way
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return descending ? -order : order;
      };
      return [...rows].sort(compare);
    }

    function update(writing = true) {
      table.tBodies[0].append(...sorted());
      const shown = rows.filter((row) => !(row.hidden = !matches(row)));
      count.textContent = `${shown.length} of ${rows.length}`;
      const next = new URLSearchParams();
      if (state.q) next.set("q", state.q);
      state.picks.forEach((pick, column) => pick && next.set(names[column], pick));
      if (state.sort) next.set("sort", state.sort);
      if (writing) history.replaceState(null, "", `${location.pathname}${next.size ? `?${next}` : ""}${location.hash}`);
    }
    update(false);
  }
  document.querySelectorAll("table.browse").forEach(browse);
})();
