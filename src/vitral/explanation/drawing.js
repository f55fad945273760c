// What pages about a picture share: unpacking what lies in them, and drawing the picture with heat on it.
//
// All they show lies in the page itself; nothing is fetched. Places are in pixels of the original picture, levels are numbers
// from 0 to 255.

const byId = (name) => document.getElementById(name);
const told = JSON.parse(byId("told").textContent);
const MEAN = -1; // the place of "mean of heads": before the first head, on the slider too
const NONE = -1; // nothing is chosen
const SVG = "http://www.w3.org/2000/svg";
const { width, height } = told.picture;
const unit = Math.sqrt(width * height);

/** Unpack what the page holds and explore it; where there is nothing to explore, only show what is written. */
async function wake(anything, explore) {
  if (!anything) {
    document.body.classList.add("awake");
  } else if ("DecompressionStream" in window) {
    byId("asleep").textContent = "Unpacking what this page shows…"; // megabytes, on large networks
    const bytes = await inflated(byId("packed").textContent);
    const picture = Object.assign(new Image(), { src: told.picture.address });
    await picture.decode();
    document.body.classList.add("awake");
    explore(bytes, picture);
  } else {
    byId("asleep").textContent =
      "This browser cannot unpack what this page shows (it lacks DecompressionStream). " +
      "Chrome and Edge can since 2020, Safari and Firefox since 2023.";
  }
}

/** The arrays of the page, which lie deflated and in base64 in a text. */
async function inflated(text) {
  const signs = atob(text.trim());
  const packed = new Uint8Array(signs.length); // sign by sign: a mapping over megabytes takes ten times as long
  for (let place = 0; place < signs.length; place++) packed[place] = signs.charCodeAt(place);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// -- small things -------------------------------------------------------------------------------------------------------

function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function mark(kind, attributes, ...children) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Put a text where it is not yet, so that screen readers say it once. */
function write(name, text) {
  if (byId(name) && byId(name).textContent !== text) byId(name).textContent = text;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function percent(share) {
  if (share <= 0) return "0\u00a0%";
  return share < 1e-4 ? "less than 0.01\u00a0%" : `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)}\u00a0%`;
}

function rgb(palette, level) {
  return `rgb(${palette[3 * level]} ${palette[3 * level + 1]} ${palette[3 * level + 2]})`;
}

/** Black or white, whichever stands out more on a colour. */
function readableOn(tint) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(tint.slice(at, at + 2), 16) / 255);
  return 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 ? "#000" : "#fff";
}

/** The picture with most of its colour taken out, so that heat stands out from it. */
function greyed(picture) {
  const canvas = element("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const image = pen.getImageData(0, 0, canvas.width, canvas.height);
  const values = image.data;
  for (let at = 0; at < values.length; at += 4) {
    const grey = 0.6 * (0.299 * values[at] + 0.587 * values[at + 1] + 0.114 * values[at + 2]);
    for (let channel = at; channel < at + 3; channel++) values[channel] = 0.4 * values[channel] + grey;
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

/** Values from 0 to 1 as a small canvas, one pixel each; `cover` says how opaque a value is, from 0 to 1. */
function heatOf(values, columns, palette, cover) {
  const image = new ImageData(columns, values.length / columns);
  for (let place = 0; place < values.length; place++) {
    const level = 3 * Math.round(255 * values[place]);
    image.data.set([palette[level], palette[level + 1], palette[level + 2], 255 * cover(values[place])], 4 * place);
  }
  const canvas = element("canvas", { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draw the picture, and heat over a part of it, in the size that a canvas has on the screen. */
function paint(canvas, ground, heat) {
  canvas.style.aspectRatio = `${width} / ${height}`;
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const wide = Math.max(1, Math.round(canvas.getBoundingClientRect().width * ratio));
  const high = Math.max(1, Math.round((wide * height) / width));
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(ground, 0, 0, wide, high);
  if (!heat) return;
  const [left, top, right, bottom] = heat.over;
  const [across, down] = [wide / width, high / height];
  pen.drawImage(heat.image, left * across, top * down, (right - left) * across, (bottom - top) * down);
}

/** What an entry of `told` stands for: its numbers, among all bytes of the page. */
function arrayOf(bytes, { at, shape, type }) {
  const length = shape.reduce((product, side) => product * side, 1);
  return type === "u1" ? new Uint8Array(bytes, at, length) : new Float32Array(bytes, at, length);
}

const turned = (value, step, count) => (value + step + count) % count;

/** Arrow keys go through a group of buttons, as they do in a list. */
function arrows(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const place = buttons.indexOf(document.activeElement);
  if (!step || place < 0) return;
  const next = buttons[clamp(place + step, 0, buttons.length - 1)];
  next.focus();
  next.click();
  event.preventDefault();
}

/** The colours of heat along a scale. */
function rampOf(palette) {
  const stops = Array.from({ length: 18 }, (_, step) => rgb(palette, Math.min(255, 15 * step)));
  return `linear-gradient(90deg, ${stops.join(", ")})`;
}

/** How opaque a value from 0 to 1 is drawn: of signed heat the middle is clear. */
function coverOf(signed, strength) {
  return signed
    ? (value) => strength * Math.min(1, 1.6 * Math.abs(2 * value - 1) + 0.1)
    : (value) => strength * (0.2 + 0.8 * Math.sqrt(value));
}
