// The search page: query image, search requests and results. Names from the index are only ever set as text.

import { cropper } from "/crop.js";

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const crop = cropper($("crop"), $("box"), () => searchSoon());
let about = { images: 0, labels: {}, max_bytes: Infinity };
let query = null; // {blob, name} of an uploaded image, or {id, name, label} of one of the index; either may have a box
let queries = []; // of this visit, for the browser's Back button
let running = null;
let timer = 0;

async function start() {
  about = await (await fetch("/api/index")).json();
  const names = Object.keys(about.labels);
  const labels = names.length ? `, ${number.format(names.length)} ${names.length === 1 ? "label" : "labels"}` : "";
  $("about").textContent = `${number.format(about.images)} images${labels}`;
  $("limits").textContent = `JPEG, PNG, WebP, GIF or BMP, up to ${about.max_bytes >> 20} MB`;
  $("label-field").hidden = !names.length;
  $("labels").replaceChildren(...names.map((name) => new Option(`${number.format(about.labels[name])} images`, name)));
  if (!query) browse(); // an image may have been chosen meanwhile
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
    history.pushState(queries.length - 1, "");
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
  const label = $("label").value.trim();
  if (label) values.set("label", label);
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
  if (!query) return browse();
  $("whole").disabled = !crop.value;
  $("status").textContent = "Searching …";
  return ask(request, show);
}

function browse() {
  return ask((signal) => fetch(`/api/images?${parameters()}`, { signal }), (images) => {
    clear("Or start from one of these:");
    $("grid").replaceChildren(...images.map(tile));
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

function show({ match, threshold, hits }, milliseconds) {
  const label = $("label").value.trim();
  const among = label ? `labeled ${label}` : `of ${number.format(about.images)}`;
  clear(match === false ? "" : `The ${hits.length} nearest images ${among}, in ${Math.round(milliseconds)} ms`);
  const tiles = hits.map(tile);
  if (match !== false) return $("grid").replaceChildren(...tiles);
  const nearest = label ? `The nearest image labeled ${label}` : "The nearest image";
  const best = hits.length ? `${nearest} reaches ${hits[0].similarity.toFixed(3)}; ` : "";
  $("no-match-text").textContent = `${best}a match needs ${threshold.toFixed(3)} or more.`;
  $("no-match").hidden = false;
  $("anyway").hidden = !hits.length;
  $("anyway").onclick = () => {
    $("grid").replaceChildren(...tiles);
    $("anyway").hidden = true;
    tiles[0].firstChild.focus();
  };
}

function tile(hit) {
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
  const button = make("button", "", { type: "button", ariaLabel: title }, thumb, ...lines);
  button.addEventListener("click", () => {
    choose({ id: hit.id, name: hit.path, label: hit.label });
    scrollTo({ top: 0 });
  });
  return make("li", "", {}, button);
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
$("label").addEventListener("input", () => {
  const text = $("label").value.trim();
  if (!text || Object.hasOwn(about.labels, text)) search();
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (file) upload(file);
});
addEventListener("popstate", (event) => choose(queries[event.state] ?? null, false));

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

history.replaceState(null, "");
start().catch(() => fail("The server does not answer. Is it still running?"));
