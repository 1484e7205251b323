// A copy of the site that is read from a disk, without a server (downloads/): what a browser refuses there is not begun.
"use strict";
if (location.protocol === "file:") {
  const told = document.createElement("p");
  told.className = "search-absent";
  told.textContent = "A copy on a disk has no search";
  document.querySelector("[data-md-component=search]")?.replaceWith(told);
  document.querySelectorAll("label[for=__search]").forEach((each) => each.remove());
  document.querySelectorAll(".chart-explore").forEach((each) => {
    const why = document.createElement("p");
    why.className = "chart-told";
    why.textContent = "The chart can be explored where the site has a server; a copy on a disk shows its picture.";
    each.replaceWith(why);
  });
  addEventListener("click", (event) => { // links that a script made lead to folders
    const link = event.target.closest?.("a[href]");
    if (link?.protocol === "file:" && link.pathname.endsWith("/")) link.pathname += "index.html";
  }, true);
}
