// The theme's search looks for words by their beginnings. Here whole words count more, a name is found however it is written
// (mask rcnn, Mask R-CNN, maskrcnn), and two pages are offered: that of two models, and for a word that stands nowhere that of the
// nearest name. Loaded before the theme, whose search runs in a worker that this listens to.
"use strict";
(() => {
  const SETUP = 0, QUERY = 2, RESULT = 3; // kinds of messages to the theme's worker
  const LETTERS = /[^\p{L}\p{N}]+/u;
  const words = (text) => text.toLowerCase().split(LETTERS).filter(Boolean);
  const oneWord = (text) => words(text).join("");

  const names = new Map(); // name in one word -> its page, as the theme's index holds it
  const pairs = new Map(); // titles of two models, in both orders -> their page
  let known = new Set(); // all words of the site
  let unread = null; // the documents of the index, which are learnt when the first query comes: most readers ask none
  function learn(docs) {
    known = new Set(docs.flatMap((doc) => words([doc.title, doc.text, ...(doc.tags ?? [])].join(" "))));
    const pages = docs.filter((doc) => !doc.location.includes("#") && doc.title);
    for (const page of pages) {
      const two = page.title.split(" or ");
      if (two.length === 2) [two, [...two].reverse()].forEach((each) => pairs.set(each.join(" or "), page));
    }
    const add = (name, page) => name.length > 2 && !names.has(name) && names.set(name, page);
    const named = pages.map((page) => [page, [page.title, ...(page.tags ?? [])]]);
    named.sort(([a], [b]) => b.location.startsWith("models/") - a.location.startsWith("models/")); // models first
    for (const [page, all] of named) all.forEach((name) => add(oneWord(name), page));
    for (const [page, all] of named) all.flatMap(words).forEach((word) => add(word, page));
  }

  function sharpened(query) {
    if (/(^|\s)[+-]|[~^*"]/.test(query)) return query; // who writes operators means them
    const whole = [...words(query).map((word) => `${word}^3`), ...(names.has(oneWord(query)) ? [`${oneWord(query)}^9`] : [])];
    return [query, ...whole].join(" ");
  }

  // How many letters are too many, too few, others or swapped; a number above `most` where it is more than that.
  function distance(a, b, most) {
    if (Math.abs(a.length - b.length) > most) return most + 1;
    let last = [], row = [...Array(b.length + 1).keys()];
    for (let i = 1; i <= a.length; i++) {
      const next = [i];
      for (let j = 1; j <= b.length; j++) {
        next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] !== b[j - 1]));
        if (i > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) next[j] = Math.min(next[j], last[j - 2] + 1);
      }
      [last, row] = [row, next];
    }
    return row[b.length];
  }

  function nearest(query) {
    const sides = query.split(/\s(?:or|vs\.?|versus)\s/i).map((side) => names.get(oneWord(side))?.title);
    if (pairs.has(sides.join(" or "))) return [pairs.get(sides.join(" or "))];
    const strange = words(query).filter((word) => word.length > 2 && ![...known].some((each) => each.startsWith(word)));
    const typed = strange.length ? [oneWord(query), ...strange] : [];
    const found = typed.flatMap((word) => {
      const most = word.length > 4 ? 2 : 1;
      return [...names].map(([name, page]) => [distance(word, name, most), page]).filter(([far]) => far <= most);
    });
    return [...new Set(found.sort(([a], [b]) => a - b).map(([, page]) => page))].slice(0, 3);
  }

  function offer(query) {
    const result = document.querySelector(".md-search-result");
    const base = JSON.parse(document.getElementById("__config").textContent).base;
    const line = result.querySelector(".search-nearest") ?? Object.assign(document.createElement("p"), { className: "search-nearest" });
    const links = nearest(query).map(({ title, location }) => Object.assign(document.createElement("a"), { href: `${base}/${location}`, textContent: title }));
    line.replaceChildren(...(links.length ? ["Did you mean ", ...links.flatMap((link, i) => (i ? [" or ", link] : [link])), "?"] : []));
    result.querySelector(".md-search-result__meta").after(line);
  }

  window.Worker = class extends Worker {
    #exact = ""; // the query without beginnings of words, for the theme's library sometimes fails at these where words hold digits

    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({ data }) => {
        if (data?.type !== RESULT || data.data.items.length || !this.#exact) return;
        super.postMessage({ type: QUERY, data: this.#exact });
        this.#exact = "";
      });
    }

    postMessage(message, ...more) {
      if (message?.type === SETUP && message.data.docs) unread = message.data.docs;
      if (message?.type !== QUERY || typeof message.data !== "string") return super.postMessage(message, ...more);
      if (unread && message.data) { // the theme also asks for nothing
        learn(unread);
        unread = null;
      }
      offer(message.data);
      this.#exact = words(message.data).map((word) => `${word}^1`).join(" ");
      return super.postMessage({ ...message, data: sharpened(message.data) }, ...more);
    }
  };
})();
