// Tables that can be sorted and filtered. A page works without this file: it then shows every row in its first order.
//   <form class="browse-controls">  stands before the table; a <select> is filled with the values of the column that it is named after
//                                   (a cell may list several in data-value, apart by |)
//   <th data-sort>                  becomes a button that sorts by data-value, or by the text of the cells
// The state stands in the address (?task=...&q=...&sort=-year), so that a view can be shared.
"use strict";
(() => {
  const slug = (text) => text.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  const value = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const element = (tag, properties) => Object.assign(document.createElement(tag), properties);

  function browse(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const rows = [...table.tBodies[0].rows];
    const names = heads.map((head) => slug(head.textContent));
    const asked = new URLSearchParams(location.search);
    const state = { q: asked.get("q") ?? "", sort: asked.get("sort") ?? "", picks: new Map() };
    const form = table.closest(".scroll").previousElementSibling;
    const [text, count] = [form.querySelector("input"), form.querySelector("output")];
    form.addEventListener("submit", (event) => event.preventDefault());

    text.value = state.q;
    text.addEventListener("input", () => { state.q = text.value; update(); });
    form.querySelectorAll("select").forEach((select) => {
      const column = names.indexOf(select.name);
      const values = [...new Set(rows.flatMap((row) => value(row.cells[column]).split("|")))].filter(Boolean).sort();
      select.append(...values.map((each) => element("option", { value: each, textContent: each })));
      select.value = values.includes(asked.get(select.name)) ? asked.get(select.name) : "";
      state.picks.set(column, select.value);
      select.addEventListener("change", () => { state.picks.set(column, select.value); update(); });
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
    form.addEventListener("reset", () => {
      state.q = "";
      state.picks.forEach((_, column) => state.picks.set(column, ""));
      update();
    });

    function matches(row) {
      const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
      const content = [row.textContent, ...[...row.querySelectorAll("[title]")].map((each) => each.title)].join(" ").toLowerCase();
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
    const asks = state.q || state.sort || [...state.picks.values()].some(Boolean);
    if (asks) update(false);
    else count.textContent = `${rows.length} of ${rows.length}`; // and a long table need not be laid out twice
  }
  document.querySelectorAll("table.browse").forEach(browse);
})();
