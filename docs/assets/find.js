// The theme's search looks for words by their beginnings. Here whole words count more, a name is found however it is written
// (mask rcnn, Mask R-CNN, maskrcnn) and a word however it is spelt (tumour, tumor), what is asked for by no name leads to the pages
// that are tagged with it (topic() in scripts/pages/environment.py), and pages are offered: that of two models, and for a word that
// stands nowhere those of the nearest names, tasks and terms. Loaded before the theme, whose search runs in a worker that this
// listens to, and whose index this fetches only when someone is about to search.
"use strict";
(() => {
  const SETUP = 0, QUERY = 2, RESULT = 3; // kinds of messages to the theme's worker
  const LETTERS = /[^\p{L}\p{N}]+/u;
  const BOTH_WAYS = [["our", "or"], ["is", "iz"], ["ys", "yz"], ["ence", "ense"], ["tre", "ter"], ["ll", "l"], ["ey", "ay"]]; // British, American
  const words = (text) => text.toLowerCase().split(LETTERS).filter(Boolean);
  const oneWord = (text) => words(text).join("");
  const stem = (text) => oneWord(text).replace(/(ing|ions?|ors?|ed|es?|s)$/, ""); // fine-tune, fine-tuning; detector, detection

  const names = new Map(); // name in one word -> its pages, as the theme's index holds them
  const pairs = new Map(); // titles of two models, in both orders -> their page
  const topics = new Map(); // stem of what is asked for -> the tag of the pages that answer
  const tasks = new Map(); // stem of a task's name -> its place on the page By task
  let known = []; // all words of the site
  let unread = null; // the documents of the index, which are learnt when the first query comes: most readers ask none
  const isTopic = (tag) => tag.startsWith("topic");
  const stands = (word) => known.some((each) => each.startsWith(word));

  function learn(docs) {
    const tags = new Set(docs.flatMap((doc) => doc.tags ?? []));
    for (const tag of [...tags].filter(isTopic)) topics.set(stem(tag.slice("topic".length)), tag);
    known = [...new Set(docs.flatMap((doc) => words([doc.title, doc.text, ...named(doc)].join(" "))))];
    const pages = docs.filter((doc) => !doc.location.includes("#") && doc.title);
    for (const page of pages) {
      const two = page.title.split(" or ");
      if (two.length === 2) [two, [...two].reverse()].forEach((each) => pairs.set(each.join(" or "), page));
    }
    pages.sort((a, b) => b.location.startsWith("models/") - a.location.startsWith("models/")); // models first
    const [jobs, terms] = ["tasks/#", "glossary/#"].map((place) => docs.filter((doc) => doc.location.startsWith(place)));
    jobs.forEach((job) => tasks.set(stem(job.title), job.location));
    const whole = (doc) => named(doc).map(oneWord), parts = (doc) => named(doc).flatMap(words);
    for (const [group, keys] of [[pages, whole], [jobs, whole], [terms, whole], [jobs, parts], [pages, parts], [terms, parts]]) {
      lead(group, keys);
    }
  }

  const named = (doc) => [...doc.title.split(/ \(|, |\)/), doc.title, ...(doc.tags ?? []).filter((tag) => !isTopic(tag))];

  // Keys that no group before has lead to all pages of this one that have them.
  function lead(group, keys) {
    const found = new Map();
    for (const doc of group) {
      for (const key of new Set(keys(doc))) if (key.length > 2 && !names.has(key)) found.set(key, [...(found.get(key) ?? []), doc]);
    }
    found.forEach((docs, key) => names.set(key, docs));
  }

  function spellings(word) {
    const others = BOTH_WAYS.flatMap(([a, b]) => [word.replace(a, b), word.replace(b, a)]);
    return [...new Set(others)].filter((each) => each !== word && stands(each));
  }

  function topicOf(query) {
    const respelt = words(query).map((word) => spellings(word)[0] ?? word);
    return topics.get(stem(query)) ?? topics.get(stem(respelt.join(" ")));
  }

  function sharpened(query) {
    if (/(^|\s)[+-]|[~^*"]/.test(query)) return query; // who writes operators means them
    const typed = words(query), spelt = typed.flatMap(spellings), topic = topicOf(query);
    const begun = query.replace(/(?<=^|\s)\S{1,2}(?=\s)/gu, "$&^1"); // a word as short as `to` is whole once another follows
    const whole = [...typed, ...spelt].map((word) => `${word}^3`);
    const named = names.has(oneWord(query)) ? [`${oneWord(query)}^9`] : [];
    return [begun, ...spelt, ...whole, ...named, ...(topic ? [`${topic}^40`] : [])].join(" ");
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
    const sides = query.split(/\s(?:or|vs\.?|versus)\s/i).map((side) => names.get(oneWord(side))?.[0].title);
    if (pairs.has(sides.join(" or "))) return [pairs.get(sides.join(" or "))];
    const strange = words(query).filter((word) => word.length > 2 && !stands(word) && !spellings(word).length);
    if (!strange.length || topicOf(query)) return [];
    const whole = near(oneWord(query));
    return (whole.length ? whole : [...new Set(strange.flatMap(near))]).slice(0, 3);
  }

  // The pages whose names are like a word, the nearest first.
  function near(word) {
    const most = word.length > 4 ? 2 : 1;
    const found = [...names].map(([name, docs]) => [distance(word, name, most), docs]).filter(([far]) => far <= most);
    return [...new Set(found.sort(([a], [b]) => a - b).flatMap(([, docs]) => docs))];
  }

  function offer(query) {
    const result = document.querySelector(".md-search-result");
    const base = JSON.parse(document.getElementById("__config").textContent).base;
    const line = result.querySelector(".search-nearest") ?? Object.assign(document.createElement("p"), { className: "search-nearest" });
    const links = nearest(query).map(({ title, location }) => Object.assign(document.createElement("a"), { href: `${base}/${location}`, textContent: title }));
    line.replaceChildren(...(links.length ? ["Did you mean ", ...links.flatMap((link, i) => (i ? [" or ", link] : [link])), "?"] : []));
    result.querySelector(".md-search-result__meta").after(line);
  }

  // The name of a task is answered by its place on the page By task, before the models that are for it.
  function taskFirst(items, query) {
    const place = tasks.get(stem(query)), at = items.findIndex((page) => page.some(({ location }) => location === place));
    if (at < 0) return;
    const most = Math.max(...items.flat().map(({ score }) => score));
    const [page] = items.splice(at, 1);
    const job = page.find(({ location }) => location === place), whole = page.find(({ location }) => !location.includes("#"));
    items.unshift([Object.assign(job, { score: most + 2 }), Object.assign(whole, { score: most + 1 })]);
  }

  // A page that is found by its name or its topic shows the section that holds more of the words than its beginning does.
  function showWords(page, sought) {
    const marked = ({ text }) => [...text.matchAll(/<mark[^>]*>([^<]*)/g)].map(([, word]) => word.toLowerCase());
    const held = (doc) => sought.filter((word) => marked(doc).some((each) => each.startsWith(word))).length;
    const at = page.findIndex(({ location }) => !location.includes("#"));
    if (at !== 0) return; // a section is shown already
    const [whole, ...sections] = page, most = Math.max(0, ...sections.map(held));
    if (most <= held(whole)) return;
    const best = sections.find((section) => held(section) === most);
    page.splice(0, page.length, whole, Object.assign(best, { score: whole.score }), ...sections.filter((each) => each !== best));
  }

  // What was added to a query is no word that a page lacks; its tags are in its text already, or none to read.
  function readable(items, query) {
    const typed = words(query), spelt = typed.flatMap(spellings);
    const told = ([term, found]) => !isTopic(term) && (found || (typed.includes(term) && !spelt.length));
    for (const doc of items.flat()) {
      delete doc.tags;
      doc.terms = Object.fromEntries(Object.entries(doc.terms).filter(told));
    }
    items.forEach((page) => showWords(page, [...typed, ...spelt]));
  }

  window.Worker = class extends Worker {
    #typed = "";
    #exact = ""; // the query without beginnings of words, for the theme's library sometimes fails at these where words hold digits

    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({ data }) => {
        if (data?.type !== RESULT) return;
        readable(data.data.items, this.#typed);
        taskFirst(data.data.items, this.#typed);
        if (data.data.items.length || !this.#exact) return;
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
      this.#typed = message.data;
      offer(message.data);
      this.#exact = words(message.data).map((word) => `${word}^1`).join(" ");
      return super.postMessage({ ...message, data: sharpened(message.data) }, ...more);
    }
  };

  const address = new URLSearchParams(location.search);
  const wanted = new Promise((done) => { // by who comes from a result, or is on the way to the field
    if (address.has("h") || address.has("q")) return done();
    for (const kind of ["focusin", "pointerover"]) {
      document.addEventListener(kind, ({ target }) => target.closest?.(".md-search, label[for=__search]") && done());
    }
  });
  window.XMLHttpRequest = class extends XMLHttpRequest {
    #address = "";

    open(method, address, ...more) {
      this.#address = String(address);
      super.open(method, address, ...more);
    }

    send(...body) {
      if (!this.#address.endsWith("/search_index.json")) return super.send(...body);
      wanted.then(() => super.send(...body));
    }
  };
})();
