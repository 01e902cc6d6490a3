// Two images side by side, with their marks: keys 1 and 2 for a wrong label, D for a duplicate, F for fine, U to undo.
let shownPairs = []; // those that the arrows turn through
let shownPair = null; // [one, other, text, two pictures of their heat maps or nothing]
let heat = false; // whether heat maps are shown
const ACTIONS = [
  ["1", "Left label is wrong", (one, other) => markWrong(one, other)],
  ["2", "Right label is wrong", (one, other) => markWrong(other, one)],
  ["d", "Duplicate", (one, other) => setMark(pairKey(one, other), [pathOf(other), "duplicate", "", pathOf(one)])],
  ["f", "Fine", (one, other) => setMark(pairKey(one, other), [pathOf(one), "fine", "", pathOf(other)])],
  ["w", "Why?", () => { heat = !heat; drawHeat(); }],
  ["u", "Undo", (one, other) => {
    for (const key of [labelKey(one), labelKey(other), pairKey(one, other)]) setMark(key, null);
  }],
];

// The class of the other image is the first guess at the right one.
function markWrong(image, other) {
  setMark(labelKey(image), [pathOf(image), "wrong label", classOf(other) === classOf(image) ? "" : classOf(other), ""]);
}

function viewPair(pair, pairs) {
  [shownPair, shownPairs] = [pair, pairs];
  const [one, other] = pair;
  $("pair-title").textContent = classOf(one) === classOf(other) ? classOf(one) : `${classOf(one)} | ${classOf(other)}`;
  drawHeat();
  $("pair-previous").disabled = pairs.indexOf(pair) <= 0;
  $("pair-next").disabled = pairs.indexOf(pair) >= pairs.length - 1;
  drawState();
  if (!$("pair-viewer").open) $("pair-viewer").showModal();
}

// Shows both images with the parts that make their similarity, or as they are.
function drawHeat() {
  const [one, other, text, pictures] = shownPair;
  $("pair-images").replaceChildren(largePicture(one), largePicture(other));
  const button = $("pair-actions").children[ACTIONS.findIndex(([key]) => key === "w")];
  button.hidden = !pictures;
  button.ariaPressed = heat;
  $("pair-text").textContent = `${shownPairs.indexOf(shownPair) + 1} of ${shownPairs.length} · ${text}${
    pictures && heat ? " · red parts make the two similar, blue ones differ" : ""}`;
  if (!pictures || !heat) return;
  $("pair-images").querySelectorAll(".thumb").forEach((frame, side) => {
    frame.replaceChildren(make("img", { src: `data:image/webp;base64,${pictures[side]}`, alt: "Heat map" }));
  });
}

// The inputs are made anew only for another pair or another set of marks, so that the keyboard stays where it is.
let drawnState = "";

function drawState() {
  if (!shownPair) return;
  const [one, other] = shownPair;
  const state = marks.get(pairKey(one, other))?.[1];
  const labels = [["Left", one], ["Right", other]].filter(([, image]) => marks.has(labelKey(image)));
  const wanted = JSON.stringify([one, other, state, labels]);
  if (wanted === drawnState) return;
  drawnState = wanted;
  $("pair-state").replaceChildren(
    make("span", { textContent: state ? `Marked as ${state}.` : labels.length ? "" : "Not marked." }),
    ...labels.map(([side, image]) => make("label", {}, `${side} belongs to `, classInput(image))));
}

function classInput(image) {
  const [path, mark, label] = marks.get(labelKey(image));
  const input = make("input", { value: label, placeholder: "none of these", autocomplete: "off" });
  input.setAttribute("list", "class-names");
  input.addEventListener("change", () => {
    const words = input.value.trim().toLowerCase();
    const known = classNames.find((name) => name.toLowerCase() === words);
    input.setCustomValidity(known || !words ? "" : "No class of this name");
    if (!input.reportValidity()) return;
    input.value = known ?? "";
    setMark(labelKey(image), [path, mark, input.value, ""]);
  });
  return input;
}

function stepPair(by) {
  const next = shownPairs[shownPairs.indexOf(shownPair) + by];
  if (next) viewPair(next, shownPairs);
}

$("pair-actions").append(...ACTIONS.map(([key, text, act]) => {
  const button = make("button", { type: "button" }, make("kbd", { textContent: key.toUpperCase() }), ` ${text}`);
  button.addEventListener("click", () => act(shownPair[0], shownPair[1]));
  return button;
}));
document.addEventListener("keydown", (event) => {
  if (!$("pair-viewer").open || event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = ACTIONS.find(([key]) => key === event.key.toLowerCase());
  if (action) action[2](shownPair[0], shownPair[1]);
  if (event.key === "ArrowLeft") stepPair(-1);
  if (event.key === "ArrowRight") stepPair(1);
});
$("pair-close").addEventListener("click", () => $("pair-viewer").close());
$("pair-previous").addEventListener("click", () => stepPair(-1));
$("pair-next").addEventListener("click", () => stepPair(1));
$("pair-viewer").addEventListener("click", (event) => {
  if (event.target === $("pair-viewer")) $("pair-viewer").close();
});
document.addEventListener("marked", drawState);
