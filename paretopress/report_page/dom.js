// Building elements. Everything that a model or a user named is set as text, never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function replace(target, ...children) {
  (typeof target === "string" ? byId(target) : target).replaceChildren(...children.flat(Infinity).filter(Boolean));
}

function picture(width, height, label, ...children) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);
}

// The room that a plot has: text keeps its size on narrow screens because the picture is drawn as wide as it is shown.
function roomOf(id, least = 300, most = 1000) {
  const width = byId(id).clientWidth || 720;
  return Math.round(Math.min(Math.max(width, least), most));
}

function selectBox(label, options, value, onChange) {
  const box = h("select", { on: { change: () => onChange(box.value) } },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  return h("label", {}, label, box);
}

function copyButton(text, what) {
  const button = h("button", { type: "button", "aria-label": `Copy ${what}`, on: {
    click: async () => {
      button.textContent = (await copied(text)) ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    },
  } }, "Copy");
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text);
  }
}

// Files opened from disk may not use the clipboard: then the text is selected in a field of its own.
function copiedBySelection(text) {
  const field = h("textarea", { readonly: true, "aria-label": "Text to copy" });
  field.value = text;
  document.body.append(field);
  field.select();
  let done = false;
  try {
    done = document.execCommand("copy");
  } catch {
    done = false;
  }
  field.remove();
  return done;
}

const tip = {
  show(event, ...content) {
    const box = byId("tip");
    replace(box, ...content);
    box.hidden = false;
    const at = event.target.getBoundingClientRect();
    const x = event.clientX || at.x + at.width / 2;
    const y = event.clientY || at.y + at.height / 2;
    const room = box.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - room.width - 8))}px`;
    box.style.top = `${y + 16 + room.height > innerHeight ? Math.max(4, y - room.height - 12) : y + 16}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
};
