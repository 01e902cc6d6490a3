const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const percent = (value) => (100 * value).toFixed(1);
const labelOf = (image) => data.images[image][1];
const classOf = (image) => data.classes[labelOf(image)];
const pathOf = (image) => data.images[image][2];

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
    frame.append(make("span", { className: "none", textContent: pathOf(image) }));
  }
  if (kind) frame.append(make("span", { className: "mark", textContent: kind === "hit" ? "✓" : "✗" }));
  return frame;
}

function caption(strong, label) {
  return make("span", { className: "caption", title: label },
    make("b", { textContent: strong }), make("span", { className: "label", textContent: ` ${label}` }));
}

// An image as large as the page has it, with its class, its path and a button that copies the path.
function largePicture(image) {
  const frame = picture(image, "");
  const source = data.large[image] && `data:image/webp;base64,${data.large[image]}`;
  if (source) frame.replaceChildren(make("img", { src: source, alt: classOf(image) }));
  frame.classList.add("large");
  const copy = make("button", { type: "button", className: "copy", textContent: "Copy path" });
  copy.addEventListener("click", () => copyText(pathOf(image), copy));
  return make("figure", {}, frame, make("figcaption", {}, make("b", { textContent: classOf(image) }),
    make("code", { className: "path", textContent: pathOf(image) }), copy));
}

// The clipboard needs a secure context, which a page on another machine lacks: there the text is selected and copied.
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { value: text, className: "skip" });
    button.after(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy path"; }, 1500);
}
