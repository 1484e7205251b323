// Names for what the theme leaves nameless, for those who listen to a page instead of looking at it.
function nameLandmarks() {
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
  document.querySelectorAll("nav.md-code__nav").forEach((nav, i) => nav.setAttribute("aria-label", `Code ${i + 1}`));
}
nameLandmarks();
new MutationObserver(nameLandmarks).observe(document.body, { childList: true, subtree: true });

// What scrolls sideways can be reached and scrolled by keyboard: tables of the theme, and formulas wider than the page.
function reach() {
  document.querySelectorAll(".md-typeset__scrollwrap, .equation, .formula").forEach((each) => {
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
    else each.removeAttribute("tabindex");
  });
}
["load", "resize", "toggle"].forEach((event) => addEventListener(event, reach, true)); // `toggle` does not bubble

// A link into something folded opens it; on paper everything is open, and in light colours.
function reveal() {
  const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target?.querySelector(":scope > details")?.setAttribute("open", "");
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();
let before;
addEventListener("beforeprint", () => {
  before = { scheme: document.body.dataset.mdColorScheme, closed: [...document.querySelectorAll("details:not([open])")] };
  document.body.dataset.mdColorScheme = "default";
  before.closed.forEach((each) => { each.open = true; });
});
addEventListener("afterprint", () => {
  document.body.dataset.mdColorScheme = before.scheme;
  before.closed.forEach((each) => { each.open = false; });
});
