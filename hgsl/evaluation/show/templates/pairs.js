$("confusion-list").append(...data.confusions.slice(0, 60).map(([from, to, times]) => {
  const button = make("button", { type: "button", textContent: `${data.classes[from]} → ${data.classes[to]}` });
  button.addEventListener("click", () => show("", [from, to]));
  return make("li", {}, button, make("span", { className: "times", textContent: `${times} ×` }));
}));
if (!data.confusions.length) $("confusion-list").append(make("li", { textContent: "None: every nearest image is right." }));

const suspicious = data.pairs.map(([one, other, score], number) =>
  [one, other, `${score.toFixed(4)} ${data.metric}`, data.heat[number]]);
const badges = suspicious.map(() => make("span", { className: "badge" }));

$("pair-list").append(...suspicious.map((pair, number) => {
  const [one, other, text] = pair;
  const score = text.split(" ")[0];
  const images = [one, other].map((image) =>
    make("span", {}, picture(image, ""), caption("", classOf(image)), caption("", pathOf(image).split("/").pop())));
  const button = make("button", { type: "button" }, make("span", { className: "two" }, ...images),
    make("span", { className: "foot" }, caption(score, ""), badges[number]));
  button.setAttribute("aria-label", `Open the pair ${pathOf(one)} and ${pathOf(other)}, ${text}`);
  button.addEventListener("click", () => viewPair(pair, suspicious));
  return make("li", {}, button);
}));
if (!suspicious.length) $("pair-list").append(make("li", { textContent: "None." }));

function drawBadges() {
  suspicious.forEach(([one, other], number) => {
    const wrong = [one, other].some((image) => marks.has(labelKey(image)));
    badges[number].textContent = marks.get(pairKey(one, other))?.[1] ?? (wrong ? "wrong label" : "");
  });
}
document.addEventListener("marked", drawBadges);
