// Elements: find one by its id, make one, and show or hide it.

export const $ = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. Properties are set as such, and names with a dash as attributes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Make an element of a drawing. */
export function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Make one of the icons that the page defines. */
export function icon(name) {
  const made = svg("svg", { class: "icon", "aria-hidden": "true" });
  made.append(svg("use", { href: `#i-${name}` }));
  return made;
}

/** Replace the icon in a button. */
export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

/** Show how far a range is filled, which no browser but Firefox draws by itself. */
export function fill(range) {
  const [least, most] = [Number(range.min), Number(range.max)];
  const share = most > least ? (Number(range.value) - least) / (most - least) : 0;
  range.style.setProperty("--fill", `${share * 100}%`);
}

/** Return a sentence of the worker as text and, where it quotes a name in `backquotes`, code. */
export function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", { textContent: part }) : part));
}

/** Say something to people who do not see the page. */
export function say(text) {
  $("said").textContent = "";
  requestAnimationFrame(() => ($("said").textContent = text));
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
