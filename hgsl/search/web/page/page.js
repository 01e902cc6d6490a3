// The search page: query image, search requests and results. Names from the index are only ever set as text.

import { cropper } from "/crop.js";
import { labelPicker } from "/labels.js";
import { copyText, openLarge } from "/large.js";
import { statistics } from "/statistics.js";

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const crop = cropper($("crop"), $("box"), () => searchSoon());
const labels = labelPicker($("label"), $("chips"), $("labels"), () => labelsChanged());
let about = { images: 0, labels: {}, max_bytes: Infinity };
let query = null; // {blob, name} of an uploaded image, or {id, name, label} of one of the index; either may have a box
let queries = []; // of this visit, for the browser's Back button
let running = null;
let timer = 0;
let focusPath = null; // of the tile that has the keyboard's focus after the next answer; "" for the first one

async function start() {
  about = await (await fetch("/api/index")).json();
  const names = Object.keys(about.labels);
  const counted = names.length ? `, ${number.format(names.length)} ${names.length === 1 ? "label" : "labels"}` : "";
  $("about").textContent = `${number.format(about.images)} images${counted}`;
  $("facts").replaceChildren(...statistics(about).map(([name, value]) =>
    make("tr", "", {}, make("th", "", { scope: "row" }, name), make("td", "", {}, value))));
  $("limits").textContent = `JPEG, PNG, WebP, GIF or BMP, up to ${about.max_bytes >> 20} MB`;
  $("label-field").hidden = !names.length;
  labels.counts = about.labels;
  const fields = Object.entries(about.fields).map(([name, type]) => `${name} (${type})`);
  $("where").title = `Such as label in ["rose", "oak"] and size > 10000; fields: ${fields.join(", ")}`;
  if (!query) await openShared(); // an image may have been chosen meanwhile
}

// --- the address, which others can open ------------------------------------------------------------------------------

function address() {
  const values = parameters();
  if (query?.id !== undefined) values.set("image", query.name);
  if (query?.id !== undefined && query.box) values.set("box", query.box.map((part) => part.toFixed(4)).join());
  return `#${values}`;
}

async function openShared() {
  const values = new URLSearchParams(location.hash.slice(1));
  if ([...$("k").options].some((option) => option.value === values.get("k"))) $("k").value = values.get("k");
  labels.value = values.getAll("label");
  $("where").value = values.get("where") ?? "";
  const path = values.get("image");
  if (!path) return choose(null);
  const response = await fetch(`/api/images?${new URLSearchParams({ path })}`);
  if (!response.ok) return fail(`The index has no image ${path} any more.`);
  const [hit] = await response.json();
  const box = values.get("box")?.split(",").map(Number) ?? null;
  choose({ id: hit.id, name: hit.path, label: hit.label, box: box?.length === 4 ? box : null });
}

function labelsChanged() {
  $("label-problem").textContent = labels.problem;
  clearTimeout(timer);
  timer = setTimeout(search, 150);
}

function choose(next, remember = true) {
  query = next;
  crop.value = query?.box ?? null;
  $("drop").hidden = Boolean(query);
  $("chosen").hidden = !query;
  if (!query) {
    $("image").removeAttribute("src");
    return browse();
  }
  if (remember) {
    queries.push(query);
    history.pushState({ number: queries.length - 1 }, "", address());
  }
  query.url ??= query.blob ? URL.createObjectURL(query.blob) : `/api/images/${query.id}/jpeg?side=1200`;
  $("image").src = query.url;
  $("name").textContent = query.label ? `${query.label}: ${query.name}` : query.name;
  search();
}

function upload(file) {
  if (!file) return;
  if (file.size > about.max_bytes) return fail(`${file.name} is larger than ${about.max_bytes >> 20} MB: choose a smaller one`);
  choose({ blob: file, name: file.name });
}

function searchSoon() {
  query.box = crop.value;
  clearTimeout(timer);
  timer = setTimeout(search, 200);
}

function parameters() {
  const values = new URLSearchParams({ k: $("k").value });
  for (const label of labels.value) values.append("label", label);
  if ($("where").value.trim()) values.set("where", $("where").value.trim());
  return values;
}

async function request(signal) {
  const { box, id } = query;
  const values = parameters();
  if (id !== undefined && !box) return fetch(`/api/images/${id}/similar?${values}`, { signal });
  if (box) values.set("box", box.map((fraction) => fraction.toFixed(5)).join());
  query.blob ??= await (await fetch(query.url, { signal })).blob(); // a part of an image of the index
  return fetch(`/api/search?${values}`, { method: "POST", body: query.blob, signal });
}

// Aborts the previous request, sends one, and passes the response on with the time it took.
async function ask(send, receive) {
  running?.abort();
  const { signal } = (running = new AbortController());
  $("grid").classList.add("old");
  try {
    const started = performance.now();
    const response = await send(signal);
    const answer = await response.json();
    if (signal.aborted) return;
    if (response.ok) receive(answer, performance.now() - started);
    else fail(answer.error);
  } catch {
    if (!signal.aborted) fail("The server does not answer. Is it still running?");
  }
}

function search() {
  history.replaceState(history.state, "", address());
  $("share").hidden = query?.id === undefined;
  if (!query) return browse();
  $("whole").disabled = !crop.value;
  $("status").textContent = "Searching …";
  return ask(request, show);
}

function browse() {
  return ask((signal) => fetch(`/api/images?${parameters()}`, { signal }), (images) => {
    clear(images.length ? "Or start from one of these:" : nothing());
    fill(images);
  });
}

function clear(status) {
  $("grid").replaceChildren();
  $("grid").classList.remove("old");
  $("no-match").hidden = $("error").hidden = true;
  $("status").textContent = status;
}

function fail(message) {
  clear("");
  $("error").textContent = message;
  $("error").hidden = false;
}

// Draws the tiles; a tile that had the focus hands it to the first one, or on the way back to the one it left.
function fill(hits) {
  $("grid").replaceChildren(...hits.map((hit) => tile(hit, hits)));
  if (focusPath === null) return;
  const index = Math.max(0, hits.findIndex((hit) => hit.path === focusPath));
  $("grid").children[index]?.firstChild.focus({ preventScroll: focusPath === "" });
  focusPath = null;
}

// What an answer without an image means.
function nothing() {
  return limits() ? "No image satisfies the label and the condition." : "Nothing found.";
}

// The images that are searched, in words; empty for all of them.
function limits() {
  const label = labels.value.length ? `labeled ${labels.value.join(" or ")}` : "";
  return [label, $("where").value.trim() && "under the condition"].filter(Boolean).join(" ");
}

function show({ match, threshold, hits }, milliseconds) {
  if (!hits.length) {
    clear(nothing());
    return fill(hits);
  }
  const nearest = hits.length === 1 ? "nearest image" : `${hits.length} nearest images`;
  const among = limits() || `of ${number.format(about.images)}`;
  clear(match === false ? "" : `The ${nearest} ${among}, in ${Math.round(milliseconds)} ms`);
  if (match !== false) return fill(hits);
  const best = `The nearest image ${limits()}`.trim();
  $("no-match-text").textContent = `${best} reaches ${hits[0].similarity.toFixed(3)}; a match needs ${threshold.toFixed(3)} or more.`;
  $("no-match").hidden = false;
  $("anyway").hidden = false;
  $("anyway").onclick = () => {
    focusPath = "";
    fill(hits);
    $("anyway").hidden = true;
  };
}

function tile(hit, hits) {
  const score = hit.similarity?.toFixed(3);
  const image = make("img", "", { loading: "lazy", alt: "", src: `/api/images/${hit.id}/jpeg` });
  const thumb = make("span", "thumb", {}, image);
  image.addEventListener("error", () => thumb.replaceChildren(make("span", "missing", {}, "not available")));
  const lines = [];
  if (score) {
    const bar = make("i");
    bar.style.width = `${100 * Math.max(0, hit.similarity)}%`;
    lines.push(make("span", "score", {}, score, make("span", "meter", {}, bar)));
  }
  if (hit.label) lines.push(make("span", "label", { title: hit.label }, hit.label));
  lines.push(make("span", "path", { title: hit.path }, hit.path.split("/").pop()));
  const title = [`Search by ${hit.path}`, hit.label, score && `similarity ${score}`].filter(Boolean).join(", ");
  const button = make("button", "tile", { type: "button", ariaLabel: title }, thumb, ...lines);
  button.addEventListener("click", () => searchBy(hit, document.activeElement === button));
  const open = make("button", "open", { type: "button", ariaLabel: `Open ${hit.path}`, title: "Open large" }, "⤢");
  const callbacks = { query: () => query, search: (other) => searchBy(other, true), heat: askHeat };
  open.addEventListener("click", () => openLarge(hits, hit, callbacks));
  return make("li", "", {}, button, open);
}

async function askHeat(hit) {
  const values = new URLSearchParams();
  if (query.box) values.set("box", query.box.map((fraction) => fraction.toFixed(5)).join());
  if (query.id === undefined) return fetch(`/api/images/${hit.id}/heat?${values}`, { method: "POST", body: query.blob });
  values.set("query", query.id);
  return fetch(`/api/images/${hit.id}/heat?${values}`);
}

function searchBy(hit, focused) {
  history.replaceState({ ...history.state, focus: hit.path }, "");
  if (focused) focusPath = "";
  choose({ id: hit.id, name: hit.path, label: hit.label });
  scrollTo({ top: 0 });
}

function make(name, className = "", properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

$("pick").addEventListener("click", () => $("file").click());
$("another").addEventListener("click", () => $("file").click());
$("whole").addEventListener("click", () => {
  crop.value = null;
  query.box = null;
  search();
});
$("file").addEventListener("change", () => {
  upload($("file").files[0]);
  $("file").value = ""; // the same file can be chosen again
});
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("controls").addEventListener("change", search);
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (file) upload(file);
});
addEventListener("popstate", (event) => {
  if (event.state === null) return openShared(); // another address was entered
  focusPath = event.state?.focus ?? null;
  choose(queries[event.state?.number] ?? null, false);
});
$("share").addEventListener("click", () => copyText(location.href, $("share")));

let depth = 0; // number of nested elements under a dragged file
addEventListener("dragenter", (event) => {
  depth += 1;
  $("over").hidden = !event.dataTransfer.types.includes("Files");
});
addEventListener("dragleave", () => {
  depth -= 1;
  if (!depth) $("over").hidden = true;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("over").hidden = true;
  upload(event.dataTransfer.files[0]);
});
$("image").addEventListener("load", () => {
  const { naturalWidth, naturalHeight } = $("image");
  $("crop").style.setProperty("--ratio", naturalWidth / naturalHeight);
});
$("image").addEventListener("error", () => {
  if (query?.blob) $("name").textContent = `${query.name} (the browser cannot show it)`;
});

history.replaceState({}, "");
start().catch(() => fail("The server does not answer. Is it still running?"));
