// A box on an image, drawn, moved and resized by pointer or keyboard; in fractions of the image's width and height.

const ALL = [0, 0, 1, 1];
const SMALLEST = 0.02;
const STEP = 0.02;

export function cropper(area, element, changed) {
  let box = ALL;
  let drag = null;

  const isAll = () => box.every((value, i) => value === ALL[i]);

  function show() {
    const [left, top, right, bottom] = box.map((value) => `${100 * value}%`);
    Object.assign(element.style, { left, top, right: `calc(100% - ${right})`, bottom: `calc(100% - ${bottom})` });
    element.classList.toggle("all", isAll());
  }

  function set(next) {
    box = next;
    show();
  }

  function at(event) {
    const frame = area.getBoundingClientRect();
    const clamp = (value) => Math.min(1, Math.max(0, value));
    return [clamp((event.clientX - frame.left) / frame.width), clamp((event.clientY - frame.top) / frame.height)];
  }

  // The corner opposite to the dragged one, which stays in place.
  function oppositeCorner(name) {
    const [left, top, right, bottom] = box;
    return [name.endsWith("w") ? right : left, name.startsWith("n") ? bottom : top];
  }

  area.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    area.setPointerCapture(event.pointerId);
    const name = event.target.dataset.corner;
    const point = at(event);
    if (name) drag = { anchor: oppositeCorner(name), before: box };
    else if (event.target === element && !isAll()) drag = { from: point, before: box };
    else drag = { anchor: point, before: box };
  });

  area.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = at(event);
    if (drag.anchor) {
      const [u, v] = drag.anchor;
      set([Math.min(u, x), Math.min(v, y), Math.max(u, x), Math.max(v, y)]);
    } else {
      set(moved(drag.before, x - drag.from[0], y - drag.from[1]));
    }
  });

  function release(event) {
    if (!drag) return;
    const { before } = drag;
    drag = null;
    const small = box[2] - box[0] < SMALLEST || box[3] - box[1] < SMALLEST;
    if (small || event.type === "pointercancel") set(before); // a click, or a finger that scrolls
    if (box.some((value, i) => value !== before[i])) changed();
  }
  area.addEventListener("pointerup", release);
  area.addEventListener("pointercancel", release);

  element.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === "Escape" && !isAll()) set(ALL);
    else if ((dx || dy) && event.shiftKey) set(resized(box, STEP * dx, STEP * dy));
    else if (dx || dy) set(moved(box, STEP * dx, STEP * dy));
    else return;
    event.preventDefault();
    changed();
  });

  show();
  return {
    get value() { return isAll() ? null : box; },
    set value(next) { set(next ?? ALL); },
  };
}

function moved([left, top, right, bottom], dx, dy) {
  const x = Math.min(1 - right, Math.max(-left, dx));
  const y = Math.min(1 - bottom, Math.max(-top, dy));
  return [left + x, top + y, right + x, bottom + y];
}

function resized([left, top, right, bottom], dx, dy) {
  return [left, top, Math.min(1, Math.max(left + 0.1, right + dx)), Math.min(1, Math.max(top + 0.1, bottom + dy))];
}
