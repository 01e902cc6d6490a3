"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 30; // queries drawn at a time
  const MAX_NAMES = 25; // classes that are named on the map
  const $ = (id) => document.getElementById(id);
  const percent = (value) => (100 * value).toFixed(1);
  const labelOf = (image) => data.images[image][1];
  const classOf = (image) => data.classes[labelOf(image)];
  const isHit = (query, rank) => labelOf(query.neighbors[rank][0]) === labelOf(query.image);

  // Names and notes from the data enter the page as text, never as markup.
  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function picture(image, kind) {
    const frame = make("span", { className: `thumb ${kind}` });
    if (data.pictures[image]) {
      const source = `data:image/webp;base64,${data.pictures[image]}`;
      frame.append(make("img", { src: source, alt: classOf(image), loading: "lazy", decoding: "async" }));
    } else {
      frame.append(make("span", { className: "none", textContent: data.images[image][2] }));
    }
    if (kind) frame.append(make("span", { className: "mark", textContent: kind === "hit" ? "✓" : "✗" }));
    return frame;
  }

  function caption(strong, label) {
    return make("span", { className: "caption", title: label },
      make("b", { textContent: strong }), make("span", { className: "label", textContent: ` ${label}` }));
  }

  // --- queries -----------------------------------------------------------------------------------------------------

  data.queries.forEach((query, number) => { query.number = number; });
  const queryOfImage = new Map(data.queries.map((query) => [query.image, query]));
  const wrongFirst = (query) => query.neighbors.length > 0 && !isHit(query, 0);
  const FILTERS = {
    all: () => true,
    wrong: wrongFirst,
    right: (query) => query.neighbors.length > 0 && isHit(query, 0),
    lost: (query) => !query.neighbors.some((_, rank) => isHit(query, rank)),
  };
  const ORDERS = {
    worst: (a, b) => a.number - b.number,
    best: (a, b) => b.number - a.number,
    sure: (a, b) => wrongFirst(b) - wrongFirst(a) || b.neighbors[0][1] - a.neighbors[0][1] || a.number - b.number,
    class: (a, b) => classOf(a.image).localeCompare(classOf(b.image)) || a.number - b.number,
  };
  let chosen = [];
  let drawn = 0;
  let confusion = null; // [class, class of the nearest image], set by a row of the confusions

  function choose() {
    const words = $("find").value.trim().toLowerCase();
    const wanted = (query) =>
      (!words || classOf(query.image).toLowerCase().includes(words) || data.images[query.image][0] === words ||
        data.images[query.image][2].toLowerCase().includes(words)) &&
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
    button.setAttribute("aria-label", `Open query ${data.images[query.image][2]}, ${name}, MAP@R ${percent(query.map)}`);
    button.addEventListener("click", () => view(query));
    return make("li", {}, button);
  }

  for (const id of ["find", "show", "order"]) $(id).addEventListener("input", () => choose());
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("reset", () => { confusion = null; setTimeout(choose); });
  $("more").addEventListener("click", () => {
    const first = drawn;
    drawMore();
    $("query-list").children[first]?.firstChild.focus();
  });

  function show(words, pair) {
    $("controls").reset();
    $("find").value = words;
    setTimeout(() => { // after the reset has been handled
      $("find").value = words;
      confusion = pair;
      choose();
      $("queries").scrollIntoView();
    });
  }

  // --- one query ---------------------------------------------------------------------------------------------------

  let viewed = null;

  function view(query) {
    viewed = query;
    const name = classOf(query.image);
    $("viewer-title").textContent = name;
    $("viewer-text").textContent =
      `${data.images[query.image][2]} · MAP@R ${percent(query.map)} · nearest first, with ${data.metric}`;
    const images = query.neighbors.map(([image, score], rank) => {
      const hit = isHit(query, rank);
      const content = [picture(image, hit ? "hit" : "miss"), caption(score.toFixed(3), classOf(image))];
      const other = queryOfImage.get(image);
      if (!other) return make("div", {}, ...content);
      const button = make("button", { type: "button", title: data.images[image][2] }, ...content);
      button.setAttribute("aria-label", `${hit ? "right" : "wrong"}, ${classOf(image)}, ${score.toFixed(3)}: open as a query`);
      button.addEventListener("click", () => view(other));
      return button;
    });
    $("viewer-images").replaceChildren(make("div", {}, picture(query.image, ""), caption("query", name)), ...images);
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
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  // --- classes -----------------------------------------------------------------------------------------------------

  const COLUMNS = [["class", "Class"], ["queries", "Queries"], ...Object.entries(data.columns)];
  let sorted = ["map@r", "ascending"];
  const classes = data.perClass.map((row) => ({ ...row, class: data.classes[row.label] }));

  function drawClasses() {
    const [key, direction] = sorted;
    const sign = direction === "ascending" ? 1 : -1;
    const words = $("find-class").value.trim().toLowerCase();
    const rows = classes.filter((row) => row.class.toLowerCase().includes(words)).sort((a, b) =>
      sign * (key === "class" ? a.class.localeCompare(b.class) : a[key] - b[key]) || a.class.localeCompare(b.class));
    const focused = document.activeElement?.dataset?.key;
    const heads = COLUMNS.map(([column, heading]) => {
      const button = make("button", { type: "button", textContent: heading });
      button.dataset.key = column;
      button.addEventListener("click", () => {
        const down = sorted[0] === column ? sorted[1] === "ascending" : column !== "class";
        sorted = [column, down ? "descending" : "ascending"];
        drawClasses();
      });
      const cell = make("th", { scope: "col" }, button);
      if (column === key) cell.setAttribute("aria-sort", direction);
      return cell;
    });
    const body = rows.map((row) => make("tr", {}, ...COLUMNS.map(([column]) => {
      if (column === "queries") return make("td", { textContent: row.queries });
      if (column !== "class") return make("td", { textContent: percent(row[column]) });
      const button = make("button", { type: "button", textContent: row.class });
      button.addEventListener("click", () => show(row.class, null));
      return make("td", {}, button);
    })));
    $("class-table").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body));
    if (focused) $("class-table").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }
  $("find-class").addEventListener("input", drawClasses);

  // --- confusions and pairs ----------------------------------------------------------------------------------------

  $("confusion-list").append(...data.confusions.slice(0, 60).map(([from, to, times]) => {
    const button = make("button", { type: "button", textContent: `${data.classes[from]} → ${data.classes[to]}` });
    button.addEventListener("click", () => show("", [from, to]));
    return make("li", {}, button, make("span", { className: "times", textContent: `${times} ×` }));
  }));
  if (!data.confusions.length) $("confusion-list").append(make("li", { textContent: "None: every nearest image is right." }));

  $("pair-list").append(...data.pairs.map(([one, other, score]) => make("li", {},
    make("div", { className: "two" }, ...[one, other].map((image) =>
      make("span", { title: data.images[image][2] }, picture(image, ""), caption("", classOf(image))))),
    caption(score.toFixed(4), data.metric))));
  if (!data.pairs.length) $("pair-list").append(make("li", { textContent: "None." }));

  // --- map ---------------------------------------------------------------------------------------------------------

  const canvas = $("plot");
  const context = canvas.getContext("2d");
  const order = Object.keys(data.classes).map(Number);
  const hue = new Map(order.map((label, index) => [label, (index * 137.508) % 360])); // neighbors in color far apart
  let points = [];

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
      x: margin + x * (width - 2 * margin),
      y: margin + y * (height - 2 * margin),
    }));
    const drawPoint = ({ query, x, y }, faded) => {
      const label = labelOf(query.image);
      context.fillStyle = faded ? (dark ? "#57534e66" : "#a8a29e55") : `hsl(${hue.get(label)} 65% ${dark ? 62 : 42}%)`;
      context.beginPath();
      context.arc(x, y, faded ? 2.5 : 4, 0, 7);
      context.fill();
    };
    const isWanted = (point) => wanted === "" || String(labelOf(point.query.image)) === wanted;
    points.filter((point) => !isWanted(point)).forEach((point) => drawPoint(point, true));
    points.filter(isWanted).forEach((point) => drawPoint(point, false));
    if (wanted !== "" || order.length <= MAX_NAMES) drawNames(points.filter(isWanted), width);
  }

  // Each class is named at the median of its points, with an outline in the background color.
  function drawNames(named, width) {
    const style = getComputedStyle(document.body);
    const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
    context.font = `600 13px ${style.fontFamily}`;
    context.textAlign = "center";
    context.lineWidth = 4;
    context.lineJoin = "round";
    context.strokeStyle = style.getPropertyValue("--card");
    context.fillStyle = style.getPropertyValue("--ink");
    for (const label of order) {
      const group = named.filter((point) => labelOf(point.query.image) === label);
      if (!group.length) continue;
      const name = data.classes[label];
      const half = context.measureText(name).width / 2 + 6;
      const x = Math.min(width - half, Math.max(half, median(group.map((point) => point.x))));
      const y = median(group.map((point) => point.y));
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
    $("hint").textContent = point ? `${classOf(point.query.image)} · ${data.images[point.query.image][2]}` : "";
  });
  canvas.addEventListener("pointerleave", () => { $("hint").textContent = ""; });
  canvas.addEventListener("click", (event) => {
    const point = nearestPoint(event);
    if (point) view(point.query);
  });
  $("highlight").append(...order
    .sort((a, b) => data.classes[a].localeCompare(data.classes[b]))
    .map((label) => make("option", { value: label, textContent: data.classes[label] })));
  $("highlight").addEventListener("input", drawMap);
  window.addEventListener("resize", drawMap);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);

  choose();
  drawClasses();
  drawMap();
})();
