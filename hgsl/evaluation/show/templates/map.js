const MAX_NAMES = 25; // classes that are named on the map
const NAME_HEIGHT = 16;
const NAME_SHIFTS = [0, 1, -1, 2, -2, 3, -3, 4, -4]; // lines below the median, tried in this order
const canvas = $("plot");
const context = canvas.getContext("2d");
const order = Object.keys(data.classes).map(Number);
const hue = new Map(order.map((label, index) => [label, (index * 137.508) % 360])); // neighbors in color far apart
let points = [];
let zoom = { scale: 1, x: 0, y: 0 }; // of the map, and the shift of its left upper corner, in pixels
const MOST_ZOOM = 60;

function drawMap() {
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = width * scale;
  canvas.height = height * scale;
  context.scale(scale, scale);
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  const wanted = $("highlight").value;
  const margin = 16;
  points = data.map.map(([number, x, y]) => ({
    query: data.queries[number],
    x: zoom.x + zoom.scale * (margin + x * (width - 2 * margin)),
    y: zoom.y + zoom.scale * (margin + y * (height - 2 * margin)),
  }));
  const radius = Math.max(1.5, Math.min(4, 160 / Math.sqrt(points.length))) * Math.min(2, Math.sqrt(zoom.scale));
  const drawPoint = ({ query, x, y }, faded) => {
    const label = labelOf(query.image);
    context.fillStyle = faded ? (dark ? "#57534e66" : "#a8a29e55") : `hsl(${hue.get(label)} 65% ${dark ? 62 : 42}%)`;
    context.beginPath();
    context.arc(x, y, (faded ? 0.6 : 1) * radius, 0, 7);
    context.fill();
  };
  const isWanted = (point) => wanted === "" || String(labelOf(point.query.image)) === wanted;
  points.filter((point) => !isWanted(point)).forEach((point) => drawPoint(point, true));
  points.filter(isWanted).forEach((point) => drawPoint(point, false));
  if (wanted !== "" || order.length <= MAX_NAMES) drawNames(points.filter(isWanted), width, height);
}

// Each class is named near the median of its points where no other name is, with an outline in the background color.
function drawNames(named, width, height) {
  const style = getComputedStyle(document.body);
  const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  context.font = `600 13px ${style.fontFamily}`;
  context.textAlign = "center";
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = style.getPropertyValue("--card");
  context.fillStyle = style.getPropertyValue("--ink");
  const drawn = [];
  const isFree = (x, y, half) =>
    y >= NAME_HEIGHT && y <= height - NAME_HEIGHT / 2 &&
    drawn.every((name) => Math.abs(name.x - x) >= name.half + half || Math.abs(name.y - y) >= NAME_HEIGHT);
  for (const label of order) {
    const group = named.filter((point) => labelOf(point.query.image) === label);
    if (!group.length) continue;
    const name = data.classes[label];
    const half = context.measureText(name).width / 2 + 6;
    const x = Math.min(width - half, Math.max(half, median(group.map((point) => point.x))));
    const middle = median(group.map((point) => point.y));
    const y = NAME_SHIFTS.map((shift) => middle + shift * NAME_HEIGHT).find((y) => isFree(x, y, half)) ?? middle;
    drawn.push({ x, y, half });
    context.strokeText(name, x, y);
    context.fillText(name, x, y);
  }
}

function nearestPoint(event) {
  const box = canvas.getBoundingClientRect();
  let best = null;
  let least = 24 ** 2;
  for (const point of points) {
    const distance = (point.x - event.clientX + box.left) ** 2 + (point.y - event.clientY + box.top) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

canvas.addEventListener("pointermove", (event) => {
  const point = nearestPoint(event);
  $("hint").textContent = point ? `${classOf(point.query.image)} · ${pathOf(point.query.image)}` : "";
});
canvas.addEventListener("pointerleave", () => { $("hint").textContent = ""; });
// Zooms around a point of the canvas, which stays where it is.
function zoomBy(factor, x, y) {
  const scale = Math.min(MOST_ZOOM, Math.max(1, zoom.scale * factor));
  const change = scale / zoom.scale;
  moveTo(scale, x - change * (x - zoom.x), y - change * (y - zoom.y));
}

// The map never leaves its frame.
function moveTo(scale, x, y) {
  const { width, height } = canvas.getBoundingClientRect();
  const within = (value, size) => Math.min(0, Math.max(size * (1 - scale), value));
  zoom = { scale, x: within(x, width), y: within(y, height) };
  canvas.style.touchAction = scale === 1 ? "" : "none"; // a finger moves the enlarged map, not the page
  $("zoom-out").disabled = $("zoom-reset").disabled = scale === 1;
  drawMap();
}

const zoomCenter = (factor) => zoomBy(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);
$("zoom-in").addEventListener("click", () => zoomCenter(2));
$("zoom-out").addEventListener("click", () => zoomCenter(0.5));
$("zoom-reset").addEventListener("click", () => moveTo(1, 0, 0));
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && zoom.scale === 1 && event.deltaY > 0) return; // the page scrolls on
  event.preventDefault();
  zoomBy(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
}, { passive: false });

let drag = null; // where the pointer went down, and the shift of the map then
canvas.addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, from: { ...zoom }, moved: false };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag || !event.buttons || zoom.scale === 1) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  drag.moved ||= Math.hypot(x, y) > 4;
  if (drag.moved) moveTo(zoom.scale, drag.from.x + x, drag.from.y + y);
});
canvas.addEventListener("click", (event) => {
  const point = drag?.moved ? null : nearestPoint(event);
  drag = null;
  if (point) view(point.query);
});
$("highlight").append(...order
  .sort((a, b) => data.classes[a].localeCompare(data.classes[b]))
  .map((label) => make("option", { value: label, textContent: data.classes[label] })));
$("highlight").addEventListener("input", drawMap);
window.addEventListener("resize", drawMap);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
