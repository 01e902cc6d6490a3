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
