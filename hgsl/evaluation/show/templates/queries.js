const PAGE = 30; // queries drawn at a time
const isHit = (query, rank) => labelOf(query.neighbors[rank][0]) === labelOf(query.image);
data.queries.forEach((query, number) => { query.number = number; });
const queryOfImage = new Map(data.queries.map((query) => [query.image, query]));
const wrongFirst = (query) => query.neighbors.length > 0 && !isHit(query, 0);
const FILTERS = {
  all: () => true,
  wrong: wrongFirst,
  right: (query) => query.neighbors.length > 0 && isHit(query, 0),
  lost: (query) => !query.neighbors.some((_, rank) => isHit(query, rank)),
};
const bestScore = (query) => query.neighbors[0]?.[1] ?? -Infinity; // an approximate index may find no neighbor
const ORDERS = {
  worst: (a, b) => a.number - b.number,
  best: (a, b) => b.number - a.number,
  sure: (a, b) => wrongFirst(b) - wrongFirst(a) || bestScore(b) - bestScore(a) || a.number - b.number,
  class: (a, b) => classOf(a.image).localeCompare(classOf(b.image)) || a.number - b.number,
};
let chosen = [];
let drawn = 0;
let confusion = null; // [class, class of the nearest image], set by a row of the confusions

function choose() {
  const words = $("find").value.trim().toLowerCase();
  const wanted = (query) =>
    (!words || classOf(query.image).toLowerCase().includes(words) || data.images[query.image][0] === words ||
      pathOf(query.image).toLowerCase().includes(words)) &&
    (!confusion || (labelOf(query.image) === confusion[0] && query.neighbors.length > 0 &&
      labelOf(query.neighbors[0][0]) === confusion[1]));
  chosen = data.queries.filter((query) => FILTERS[$("show").value](query) && wanted(query)).sort(ORDERS[$("order").value]);
  $("query-list").replaceChildren();
  drawn = 0;
  const among = confusion ? `: ${data.classes[confusion[0]]} taken for ${data.classes[confusion[1]]}` : "";
  $("count").textContent = `${chosen.length} of ${data.queries.length} queries${among}`;
  drawMore();
}

function drawMore() {
  const part = chosen.slice(drawn, drawn + PAGE);
  $("query-list").append(...part.map(line));
  drawn += part.length;
  $("more").hidden = drawn >= chosen.length;
}

function line(query) {
  const name = classOf(query.image);
  const meter = make("span", { className: "meter" }, make("i"));
  meter.firstChild.style.width = `${100 * query.map}%`;
  const about = make("span", { className: "about" },
    make("span", { className: "name", textContent: name }),
    make("span", { className: "caption" }, "MAP@R ", make("b", { textContent: percent(query.map) })), meter);
  const strip = make("span", { className: "strip" },
    make("span", {}, picture(query.image, ""), caption("query", "")));
  strip.style.setProperty("--neighbors", Math.max(1, query.neighbors.length));
  query.neighbors.forEach(([image, score], rank) => {
    strip.append(make("span", {}, picture(image, isHit(query, rank) ? "hit" : "miss"),
      caption(score.toFixed(3), classOf(image))));
  });
  const button = make("button", { type: "button" }, about, strip);
  button.setAttribute("aria-label", `Open query ${pathOf(query.image)}, ${name}, MAP@R ${percent(query.map)}`);
  button.addEventListener("click", () => view(query));
  return make("li", {}, button);
}

for (const id of ["find", "show", "order"]) $(id).addEventListener("input", () => choose());
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => select("", null));
$("more").addEventListener("click", () => {
  const first = drawn;
  drawMore();
  $("query-list").children[first]?.firstChild.focus();
});

function select(words, pair) {
  $("controls").reset();
  $("find").value = words;
  confusion = pair;
  choose();
}

function show(words, pair) {
  select(words, pair);
  $("queries").scrollIntoView();
}
