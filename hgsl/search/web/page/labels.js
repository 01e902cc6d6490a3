// The choice of labels: those picked, and while one types, all that contain the text, in any case.

const MOST = 20; // labels that a text may stand for

/** A label input; `changed` is called when the choice changes. */
export function labelPicker(input, chips, options, changed) {
  let counts = {};
  let picked = [];

  const matching = () => {
    const text = input.value.trim().toLowerCase();
    if (!text) return [];
    const names = Object.keys(counts);
    const exact = names.filter((name) => name.toLowerCase() === text);
    return exact.length ? exact : names.filter((name) => name.toLowerCase().includes(text));
  };

  function draw() {
    chips.replaceChildren(...picked.map((name) => {
      const chip = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      chip.ariaLabel = `Remove the label ${name}`;
      chip.addEventListener("click", () => {
        picked = picked.filter((other) => other !== name);
        draw();
        input.focus();
        changed();
      });
      return chip;
    }));
  }

  function pick() {
    const [name, ...others] = matching();
    if (!name || others.length) return;
    if (!picked.includes(name)) picked.push(name);
    input.value = "";
    draw();
    changed();
  }

  input.addEventListener("input", changed);
  input.addEventListener("change", (event) => { event.stopPropagation(); pick(); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); pick(); }
    if (event.key === "Backspace" && !input.value && picked.length) {
      picked.pop();
      draw();
      changed();
    }
  });
  return {
    set counts(values) {
      counts = values;
      options.replaceChildren(...Object.entries(values).map(([name, count]) => new Option(`${count} images`, name)));
    },
    /** Labels to search in; none means all. */
    get value() {
      const names = matching();
      return [...new Set([...picked, ...(names.length > MOST ? [] : names)])];
    },
    set value(names) {
      picked = names.filter((name) => Object.hasOwn(counts, name));
      draw();
    },
    /** What is wrong with the text, or an empty string. */
    get problem() {
      const names = matching();
      if (input.value.trim() && !names.length) return "No label contains this text.";
      return names.length > MOST ? `${names.length} labels contain this text: type more of it.` : "";
    },
  };
}
