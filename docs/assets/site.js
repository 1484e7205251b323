// Names for what the theme leaves nameless, for those who listen to a page instead of looking at it.
function nameLandmarks() {
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
  document.querySelectorAll("nav.md-code__nav").forEach((nav, i) => nav.setAttribute("aria-label", `Code ${i + 1}`));
}
nameLandmarks();
new MutationObserver(nameLandmarks).observe(document.body, { childList: true, subtree: true });
