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

  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const still = figure.querySelector(".chart-still");
    const button = figure.querySelector(".chart-explore");
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
        await window.vegaEmbed(live, specification, { actions: false, renderer: "svg", ast: true, tooltip: { theme: scheme } });
        still.hidden = true;
        button.remove();
      } catch (error) {
        button.disabled = false;
        button.textContent = "The chart could not be loaded. Try again";
        console.warn(error);
      }
    });
  }
})();
