// Marks that a person sets: wrong labels, duplicates, and pairs that are fine. The browser keeps them; a download makes
// them a table, which `hgsl prepare --fixes` applies.
const STORE = `hgsl fixes ${data.key}`;
const FIELDS = ["path", "mark", "label", "other"];
const labelKey = (image) => `label\n${pathOf(image)}`;
const pairKey = (one, other) => ["pair", ...[pathOf(one), pathOf(other)].sort()].join("\n");
const classNames = Object.values(data.classes).sort((a, b) => a.localeCompare(b));
let marks = new Map();
try {
  marks = new Map(JSON.parse(localStorage.getItem(STORE) ?? "[]"));
} catch { /* no storage: the marks last as long as the page is open */ }

function setMark(key, row) {
  if (row) marks.set(key, row);
  else marks.delete(key);
  try {
    localStorage.setItem(STORE, JSON.stringify([...marks]));
  } catch { /* as above */ }
  drawMarks();
}

function drawMarks() {
  const count = marks.size === 1 ? "1 mark" : `${marks.size} marks`;
  $("mark-count").textContent = marks.size ? `${count}, kept in this browser until you remove them.` : "No marks yet.";
  $("download").disabled = $("forget").disabled = !marks.size;
  $("mark-list").replaceChildren(...[...marks].map(([key, [path, mark, label, other]]) => {
    const remove = make("button", { type: "button", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove the mark of ${path}`);
    remove.addEventListener("click", () => setMark(key, null));
    const detail = mark === "wrong label" ? (label ? `belongs to ${label}` : "of no class here") :
      mark === "duplicate" ? `of ${other}` : `with ${other}`;
    return make("li", {}, make("b", { textContent: mark }), make("span", { textContent: `${path} ${detail}` }), remove);
  }));
  document.dispatchEvent(new Event("marked"));
}

function fixesTable() {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  return [FIELDS.join(","), ...[...marks.values()].map((row) => row.map(quoted).join(","))].join("\n") + "\n";
}

$("download").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob([fixesTable()], { type: "text/csv" }));
  make("a", { href: address, download: "fixes.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
});
$("forget").addEventListener("click", () => {
  marks.clear();
  setMark("", null);
});
$("class-names").append(...classNames.map((name) => make("option", { value: name })));
