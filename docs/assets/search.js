// Search by Pagefind, for sites of many cards: loaded only where mkdocs.yml has no search plugin (docs/about/scale.md).
"use strict";
(() => {
  const bundle = document.currentScript.dataset.bundle;
  const dialog = Object.assign(document.createElement("dialog"), { id: "search", ariaLabel: "Search" });
  const button = Object.assign(document.createElement("button"), { type: "button", className: "md-header__button search-open", textContent: "Search" });
  dialog.append(Object.assign(document.createElement("div"), { id: "search-box" }));
  document.querySelector(".md-header__inner").append(button);
  document.body.append(dialog);

  let ready;
  const load = () => (ready ??= new Promise((done) => {
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: `${bundle}pagefind-ui.css` }));
    const script = Object.assign(document.createElement("script"), { src: `${bundle}pagefind-ui.js` });
    script.addEventListener("load", () => {
      new PagefindUI({ element: "#search-box", bundlePath: bundle, showSubResults: true, showImages: false, resetStyles: false });
      done();
    });
    document.head.append(script);
  }));
  const open = () => load().then(() => {
    dialog.showModal();
    dialog.querySelector("input").focus();
  });
  button.addEventListener("click", open);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (!typing && !dialog.open && !event.ctrlKey && !event.metaKey && !event.altKey && ["/", "f", "s"].includes(event.key)) {
      event.preventDefault();
      open();
    }
  });
})();
