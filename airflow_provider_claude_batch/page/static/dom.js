// Elements made by hand, and a tree changed in place so that focus, folds and scroll stay where they are.
const HANDLERS = ["onclick", "onchange", "onkeydown", "onpointermove", "onpointerdown", "onpointerleave", "onblur"];

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const key = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);
const alike = (old, fresh) => old.nodeName === fresh.nodeName && key(old) === key(fresh);

export function morph(old, fresh) {
  if (!alike(old, fresh)) return old.replaceWith(fresh);
  if (old.nodeType !== 1) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  const { value } = fresh; // its options are about to move into the old one
  const isKept = old === document.activeElement && old.defaultValue === fresh.defaultValue;
  morphAttributes(old, fresh);
  morphChildren(old, fresh);
  if (old.nodeName === "SELECT") old.value = value;
  if (old.nodeName === "INPUT" && old.value !== value && !isKept) old.value = value;
}

// The page's policy forbids setting this attribute, and allows what it stands for.
const set = (element, name, value) =>
  name === "style" ? (element.style.cssText = value) : element.setAttribute(name, value);

function morphAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) set(old, name, value);
  for (const name of HANDLERS) if (old[name] !== fresh[name]) old[name] = fresh[name];
}

function morphChildren(old, fresh) {
  const wanted = new Set([...fresh.childNodes].map(key));
  for (const child of [...old.childNodes]) if (key(child) && !wanted.has(key(child))) child.remove();
  const keyed = new Map([...old.childNodes].filter(key).map((child) => [key(child), child]));
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const match = key(child) ? keyed.get(key(child)) : next && alike(next, child) ? next : null;
    if (match === next && next) next = next.nextSibling;
    else if (match) old.insertBefore(match, next);
    if (match) morph(match, child);
    else old.insertBefore(child, next);
  }
  while (next) {
    const rest = next.nextSibling;
    next.remove();
    next = rest;
  }
}

/** Show a tree below `root`, keeping what is there already. */
export function draw(root, ...children) {
  morphChildren(root, h("div", null, ...children));
}

/** Tell people who listen rather than look. */
export function announce(text) {
  document.getElementById("live").textContent = text;
}

export function ready(done) {
  if (done) document.body.dataset.ready = "1";
  else delete document.body.dataset.ready;
}
