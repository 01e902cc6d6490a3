// A dialog with an image of the index, large, beside the query if there is one; the arrows turn to the other images.

const $ = (id) => document.getElementById(id);
let shown = []; // the images that the arrows turn through
let position = 0;
let context = null; // {query: () => {url, name} | null, search: (hit) => void, heat: (hit) => Promise of a response}
let heat = false; // whether heat maps are shown

export function openLarge(hits, hit, callbacks) {
  [shown, position, context] = [hits, hits.indexOf(hit), callbacks];
  draw();
  if (!$("large").open) $("large").showModal();
}

function draw() {
  const hit = shown[position];
  const query = context.query();
  $("large-title").textContent = hit.label ?? hit.path.split("/").pop();
  $("large-text").textContent = `${position + 1} of ${shown.length}${
    hit.similarity === undefined ? "" : ` · similarity ${hit.similarity.toFixed(4)}`}`;
  const hitFigure = figure(`/api/images/${hit.id}/jpeg?side=1200`, hit.label, hit.path);
  $("large-images").replaceChildren(...(query ? [figure(query.url, "Query", query.name)] : []), hitFigure);
  $("large-heat").hidden = !query;
  $("large-heat").ariaPressed = heat;
  $("heat-text").hidden = !heat || !query;
  if (heat && query) drawHeat(hit);
  $("large-previous").disabled = position === 0;
  $("large-next").disabled = position === shown.length - 1;
}

function figure(source, label, path) {
  const make = (name, properties) => Object.assign(document.createElement(name), properties);
  const copy = make("button", { type: "button", textContent: "Copy path" });
  copy.addEventListener("click", () => copyText(path, copy));
  const text = make("figcaption", {});
  text.append(make("b", { textContent: label ?? "" }), make("code", { textContent: path }), copy);
  const element = make("figure", {});
  element.append(make("img", { src: source, alt: path }), text);
  return element;
}

// The clipboard needs a secure context, which a server on another machine lacks: there the text is selected and copied.
export async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "skip" });
    button.after(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}

// Replaces both images by what makes them similar.
async function drawHeat(hit) {
  $("heat-text").textContent = "Computing …";
  let answer;
  try {
    answer = await (await context.heat(hit)).json();
  } catch {
    answer = { error: "The server does not answer. Is it still running?" };
  }
  if (hit !== shown[position] || !heat) return;
  if (answer.error) {
    $("heat-text").textContent = answer.error;
    return;
  }
  const [query, image] = $("large-images").querySelectorAll("img");
  [query.src, image.src] = [answer.query, answer.image];
  $("heat-text").textContent = `Red parts make the two similar, blue ones differ, as the model sees them${
    answer.exact ? "" : " (to first order: this model mixes its patches)"}.`;
}

function toggleHeat() {
  if ($("large-heat").hidden) return;
  heat = !heat;
  draw();
}

function step(by) {
  if (!shown[position + by]) return;
  position += by;
  draw();
}

$("large-close").addEventListener("click", () => $("large").close());
$("large-previous").addEventListener("click", () => step(-1));
$("large-next").addEventListener("click", () => step(1));
$("large-heat").addEventListener("click", toggleHeat);
$("large-search").addEventListener("click", () => {
  $("large").close();
  context.search(shown[position]);
});
$("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
document.addEventListener("keydown", (event) => {
  if (!$("large").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.toLowerCase() === "w") toggleHeat();
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
