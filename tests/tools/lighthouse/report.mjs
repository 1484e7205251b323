// Prints how Lighthouse scores a page of each template: node report.mjs FOLDER-OF-NODE_MODULES SITE [PAGE ...]
// A report, not a gate: performance depends on the machine, so run it where nothing else does. RUNS=3 takes medians.
// DETAILS=1 names the audits that cost a score. Scores run from 0 to 100; "desktop" is the performance on a desktop.
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import zlib from "node:zlib";

const PAGES = [
  "", "models/", "models/detr/", "examples/detr/", "choose/", "compare/?m=detr,mask-rcnn", "numbers/", "charts/", "scaling/",
  "detectors/", "evidence/", "lineage/", "licensing/", "glossary/", "notes/", "downloads/", "tasks/", "examples/", "reference/",
  "reference/lab/", "reference/cards/", "about/", "about/evidence/",
];
const CATEGORIES = ["performance", "accessibility", "best-practices", "seo"];
const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json",
  ".xml": "application/xml", ".txt": "text/plain", ".png": "image/png", ".webp": "image/webp", ".woff2": "font/woff2",
};
const COMPRESSED = /text|svg|json|xml/;
const [folder, site, ...asked] = process.argv.slice(2);
const packages = createRequire(path.resolve(folder, "index.js"));
const load = async (name) => import(pathToFileURL(packages.resolve(name)));

function answer(request, response) { // files as hosts send them: compressed, with a type, kept for a while
  const asked = decodeURIComponent(new URL(request.url, "http://host").pathname);
  const file = path.join(site, path.normalize(asked), asked.endsWith("/") ? "index.html" : "");
  if (!fs.existsSync(file) || fs.statSync(file).isDirectory()) return response.writeHead(404).end();
  const type = TYPES[path.extname(file)] ?? "application/octet-stream";
  const head = { "Content-Type": COMPRESSED.test(type) ? `${type}; charset=utf-8` : type, "Cache-Control": "max-age=600" };
  const body = fs.readFileSync(file);
  if (!COMPRESSED.test(type)) return response.writeHead(200, head).end(body);
  return response.writeHead(200, { ...head, "Content-Encoding": "gzip" }).end(zlib.gzipSync(body));
}

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const percent = (score) => Math.round(100 * score);
const { default: lighthouse, desktopConfig } = await load("lighthouse");
const { launch } = await load("chrome-launcher");
const server = http.createServer(answer).listen(0, "127.0.0.1");
const chrome = await launch({ chromePath: process.env.CHROME_PATH, chromeFlags: ["--headless=new", "--no-sandbox", "--disable-gpu"] });
const runs = Number(process.env.RUNS ?? 1);

async function measured(page, categories, config) {
  const options = { port: chrome.port, onlyCategories: categories, logLevel: "silent" };
  const { lhr } = await lighthouse(`http://127.0.0.1:${server.address().port}/${page}`, options, config);
  const failing = Object.values(lhr.categories).flatMap((category) => category.auditRefs.filter((each) => each.weight > 0)
    .map((each) => lhr.audits[each.id]).filter((audit) => audit.score !== null && audit.score < 0.9));
  const told = failing.map((audit) => `    ${audit.id} ${audit.displayValue ?? ""} ${(audit.details?.items ?? []).slice(0, 4)
    .map((item) => item.node?.snippet ?? item.description ?? "").join(" | ")}`);
  return { scores: categories.map((name) => percent(lhr.categories[name].score)), told };
}

try {
  console.log(["page", ...CATEGORIES, "desktop"].join("\t"));
  for (const page of asked.length ? asked : PAGES) {
    const mobile = [], desktop = [];
    for (let i = 0; i < runs; i++) {
      mobile.push(await measured(page, CATEGORIES));
      desktop.push(await measured(page, ["performance"], desktopConfig));
    }
    const scores = CATEGORIES.map((_, i) => median(mobile.map((each) => each.scores[i])));
    console.log([`/${page}`, ...scores, median(desktop.map((each) => each.scores[0]))].join("\t"));
    if (process.env.DETAILS) console.log([...new Set([...mobile.at(-1).told, ...desktop.at(-1).told])].join("\n"));
  }
} finally {
  chrome.kill();
  server.close();
}
