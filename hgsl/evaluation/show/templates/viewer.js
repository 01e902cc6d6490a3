let viewed = null;

function view(query) {
  viewed = query;
  const name = classOf(query.image);
  $("viewer-title").textContent = name;
  $("viewer-text").textContent =
    `MAP@R ${percent(query.map)} · nearest first, with ${data.metric}`;
  const pairs = query.neighbors.map(([image, score]) => [query.image, image, `${score.toFixed(4)} ${data.metric}`]);
  const images = query.neighbors.map(([image, score], rank) => {
    const hit = isHit(query, rank);
    const content = [picture(image, hit ? "hit" : "miss"), caption(score.toFixed(3), classOf(image))];
    const compare = make("button", { type: "button", className: "compare", textContent: "Compare" });
    compare.setAttribute("aria-label", `Compare with ${pathOf(image)}`);
    compare.addEventListener("click", () => viewPair(pairs[rank], pairs));
    const other = queryOfImage.get(image);
    if (!other) return make("div", {}, ...content, compare);
    const button = make("button", { type: "button", title: pathOf(image) }, ...content);
    button.setAttribute("aria-label", `${hit ? "right" : "wrong"}, ${classOf(image)}, ${score.toFixed(3)}: open as a query`);
    button.addEventListener("click", () => view(other));
    return make("div", {}, button, compare);
  });
  $("viewer-images").replaceChildren(largePicture(query.image), ...images);
  const position = chosen.indexOf(query);
  $("previous").disabled = position <= 0;
  $("next").disabled = position < 0 || position >= chosen.length - 1;
  if (!$("viewer").open) $("viewer").showModal();
  $("viewer").scrollTop = 0;
}

function step(by) {
  const next = chosen[chosen.indexOf(viewed) + by];
  if (chosen.includes(viewed) && next) view(next);
}

$("close").addEventListener("click", () => $("viewer").close());
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
document.addEventListener("keydown", (event) => {
  if (!$("viewer").open || $("pair-viewer").open) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
