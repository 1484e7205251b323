// The button below each chart turns the still picture into one that can be explored. The library for that is part of this site
// and is fetched only when it is asked for.
"use strict";
(() => {
  let library;
  const fetchLibrary = (address) => library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: address, type: "module", onload: resolve, onerror: reject });
    document.head.append(script);
  });

  // By keyboard: arrows move among the points, whose values are told below the chart; Enter follows one to its table.
  function reach(live) {
    const told = document.createElement("p");
    told.className = "chart-told";
    told.ariaLive = "polite";
    told.textContent = "Arrow keys move among the points, Enter leads to the table of one.";
    live.after(told);
    const points = [...live.querySelectorAll(".role-mark.mark-symbol path")];
    const item = (point) => point.__data__; // that of Vega
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    points.forEach((point, i) => {
      point.setAttribute("tabindex", i ? -1 : 0);
      point.setAttribute("role", "link");
      point.addEventListener("focus", () => {
        told.textContent = Object.entries(item(point).tooltip).map(([name, text]) => `${name}: ${text}`).join(" · ");
      });
      point.addEventListener("keydown", (event) => {
        if (event.key === "Enter") location.assign(item(point).datum.href);
        if (!(event.key in steps)) return;
        event.preventDefault();
        points.at((i + steps[event.key]) % points.length).focus();
      });
    });
    points[0]?.focus({ preventScroll: true });
  }

  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const still = figure.querySelector(".chart-still");
    const button = figure.querySelector(".chart-explore");
    if (!button) continue; // in a copy on a disk (disk.js)
    button.addEventListener("click", async () => {
      button.disabled = true;
      button.textContent = "Loading";
      try {
        const [specifications] = await Promise.all([fetch(figure.dataset.chart).then((answer) => answer.json()), fetchLibrary(figure.dataset.bundle)]);
        const scheme = document.body.dataset.mdColorScheme === "slate" ? "dark" : "light";
        const specification = specifications[scheme];
        specification.params = [{ name: "view", select: "interval", bind: "scales" }];
        specification.width = "container";
        specification.autosize = { type: "fit-x", contains: "padding" };
        specification.layer.find((layer) => layer.encoding.href).params = specification.params;
        delete specification.params;
        const live = document.createElement("div");
        live.className = "chart-live";
        still.after(live);
        // ast: expressions are interpreted, not evaluated as code, as the page's security policy wants it
        await window.vegaEmbed(live, specification, { actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { theme: scheme, disableDefaultStyle: true } });
        still.hidden = true;
        button.remove();
        reach(live);
      } catch (error) {
        button.disabled = false;
        button.textContent = "The chart could not be loaded. Try again";
        console.warn(error);
      }
    });
  }
})();
