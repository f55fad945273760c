// What the page does when it is touched. All it shows lies in the page itself; nothing is fetched.
//
// Words: a token is one of the prefix (class, registers, …) or a patch. On large models patches are gathered to blocks,
// asking and asked ones each by their own size; a block of one patch is the usual case. Picture coordinates are pixels of
// the original picture. Levels are numbers from 0 to 255.

const byId = (name) => document.getElementById(name);
const told = JSON.parse(byId("told").textContent);
const [rows, columns] = told.grid;
const prefix = told.prefix.length;
const MEAN = -1; // the place of "mean of heads": before the first head, on the slider too
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

if ("DecompressionStream" in window) {
  byId("asleep").textContent = "Unpacking what this page shows…"; // megabytes, on large networks
  const bytes = await inflated(byId("packed").textContent);
  const picture = Object.assign(new Image(), { src: told.picture.address });
  await picture.decode();
  document.body.classList.add("awake");
  start(bytes, picture);
} else {
  byId("asleep").textContent =
    "This browser cannot unpack the maps of this page (it lacks DecompressionStream). " +
    "Chrome and Edge can since 2020, Safari and Firefox since 2023.";
}

/** The arrays of the page, which lie deflated and in base64 in a text. */
async function inflated(text) {
  const signs = atob(text.trim());
  const packed = new Uint8Array(signs.length);
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

/** Put a text where it is not yet, so that screen readers say it once. */
function write(name, text) {
  if (byId(name).textContent !== text) byId(name).textContent = text;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** The place of the greatest value, the first of several. */
function greatest(values) {
  return values.reduce((best, value, place) => (value > values[best] ? place : best), 0);
}

function percent(share) {
  return share < 1e-5 ? "less than 0.001\u00a0%" : `${(100 * share).toPrecision(3)}\u00a0%`;
}

function capitalised(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/** Patches gathered size × size; the blocks at the right and at the bottom may be smaller. */
function blocksOf(size) {
  const across = Math.ceil(columns / size);
  const down = Math.ceil(rows / size);
  const of = Uint16Array.from({ length: rows * columns }, (_, patch) => {
    return Math.floor(Math.floor(patch / columns) / size) * across + Math.floor((patch % columns) / size);
  });
  const patches = new Float32Array(across * down); // how many each block has
  for (const block of of) patches[block]++;
  const span = (block) => {
    const top = Math.floor(block / across) * size;
    const left = (block % across) * size;
    return { top, left, bottom: Math.min(top + size, rows), right: Math.min(left + size, columns) };
  };
  const range = (from, to) => (to - from > 1 ? `${from}–${to - 1}` : `${from}`);
  const place = (block) => {
    const { top, left, bottom, right } = span(block);
    return `(${range(top, bottom)}, ${range(left, right)})`;
  };
  const name = (block) => `${size > 1 ? "patches" : "patch"} ${place(block)}`;
  return { size, across, down, count: across * down, of, patches, span, place, name };
}

// -- colours and canvases -----------------------------------------------------------------------------------------------

/** 256 opaque colours as numbers for a Uint32Array over ImageData. */
function paletteOf(table) {
  const channels = new Uint8Array(4 * 256).fill(255);
  for (let level = 0; level < 256; level++) channels.set(table.subarray(3 * level, 3 * level + 3), 4 * level);
  return new Uint32Array(channels.buffer);
}

/** Values from 0 to 1 as a small image, one pixel each; `cover` says how opaque a value is, from 0 to 1. */
function imageOf(values, width, palette, cover = () => 1) {
  const image = new ImageData(width, values.length / width);
  const pixels = new Uint32Array(image.data.buffer);
  for (let place = 0; place < values.length; place++) pixels[place] = palette[Math.round(255 * values[place])];
  for (let place = 0; place < values.length; place++) image.data[4 * place + 3] = 255 * cover(values[place]);
  return image;
}

function canvasOf(image) {
  const canvas = element("canvas", { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The picture with most of its colour taken out, so that heat stands out from it (as `base.draw.draw_heat` does). */
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

/** How much heat covers the picture: the more, the hotter. */
function coverOf(value, strength) {
  return strength * (0.25 + 0.75 * Math.sqrt(value));
}

/** A canvas that shows a part of the picture, in whatever size it has on the screen. */
function stageOn(canvas, ground, [left, top, right, bottom]) {
  const { origin, patch, seen, box: whole, smooth } = told.picture;
  canvas.style.aspectRatio = `${right - left} / ${bottom - top}`;
  canvas.style.setProperty("--shape", (right - left) / (bottom - top));
  const pen = canvas.getContext("2d");
  const ratio = () => Math.min(window.devicePixelRatio || 1, 2);
  const x = (at) => Math.round(((at - left) / (right - left)) * canvas.width);
  const y = (at) => Math.round(((at - top) / (bottom - top)) * canvas.height);

  /** A rectangle of the picture on the canvas; whole pixels, so that edges are sharp. */
  const box = ([x0, y0, x1, y1]) => [x(x0), y(y0), x(x1) - x(x0), y(y1) - y(y0)];

  /** A span of patches on the canvas. */
  const boxOf = (span) => {
    const [across, down] = [(column) => origin[0] + column * patch[0], (row) => origin[1] + row * patch[1]];
    return box([across(span.left), down(span.top), across(span.right), down(span.bottom)]);
  };

  /** The picture, faded where the model did not see it, and heat over a part of it. */
  function draw(heat, over, smoothly) {
    const { width, height } = canvas.getBoundingClientRect();
    const [wide, high] = [Math.max(1, Math.round(width * ratio())), Math.max(1, Math.round(height * ratio()))];
    if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    pen.clearRect(0, 0, wide, high);
    pen.imageSmoothingEnabled = smooth;
    pen.imageSmoothingQuality = "high";
    pen.globalAlpha = 0.28;
    pen.drawImage(ground, ...box(whole));
    pen.globalAlpha = 1;
    pen.save();
    pen.beginPath();
    pen.rect(...box(seen));
    pen.clip();
    pen.fillStyle = "#000"; // what is beyond the picture's edge the model sees as black
    pen.fillRect(0, 0, wide, high);
    pen.drawImage(ground, ...box(whole));
    pen.imageSmoothingEnabled = smoothly;
    pen.drawImage(heat, ...box(over));
    pen.restore();
  }

  function lines() {
    const [from, down, wide, high] = box(seen);
    if (Math.min(wide / columns, high / rows) < 5) return; // lines closer than this would cover the picture
    pen.fillStyle = "rgb(255 255 255 / 0.22)";
    for (let column = 1; column < columns; column++) pen.fillRect(x(origin[0] + column * patch[0]), down, 1, high);
    for (let row = 1; row < rows; row++) pen.fillRect(from, y(origin[1] + row * patch[1]), wide, 1);
  }

  /** A light line between dark ones, to be seen on any ground. */
  function stroke(width) {
    for (const [colour, extra] of [["rgb(0 0 0 / 0.75)", 2.5], ["#fff", 0]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = (width + extra) * ratio();
      pen.stroke();
    }
  }

  function frame(span, width) {
    pen.beginPath();
    pen.rect(...boxOf(span));
    stroke(width);
  }

  function ring(span) {
    const [from, down, wide, high] = boxOf(span);
    const radius = Math.min(0.28 * Math.min(wide, high), 0.02 * canvas.width);
    pen.beginPath();
    pen.arc(from + wide / 2, down + high / 2, radius, 0, 2 * Math.PI);
    stroke(1.5);
  }

  /** The patch under the pointer; null beside the patches. */
  function patchAt(event) {
    const place = canvas.getBoundingClientRect();
    const across = left + ((event.clientX - place.left) / place.width) * (right - left);
    const down = top + ((event.clientY - place.top) / place.height) * (bottom - top);
    const [row, column] = [Math.floor((down - origin[1]) / patch[1]), Math.floor((across - origin[0]) / patch[0])];
    return row >= 0 && row < rows && column >= 0 && column < columns ? row * columns + column : null;
  }

  return { canvas, draw, lines, frame, ring, patchAt };
}

function start(bytes, picture) {
  const array = ({ at, shape, type }) => {
    const length = shape.reduce((product, side) => product * side, 1);
    return type === "u1" ? new Uint8Array(bytes, at, length) : new Float32Array(bytes, at, length);
  };
  const colours = Object.fromEntries(Object.entries(told.colours).map(([name, place]) => [name, paletteOf(array(place))]));
  const ground = greyed(picture);
  if (told.layers.length) explore(array, colours, ground);
  for (const canvas of document.querySelectorAll("canvas[data-heat]")) showHeat(canvas, array, colours, ground);
  if (told.positions) comparePositions(array, colours);
}

// -- the explorer, and the wall of maps ---------------------------------------------------------------------------------

function explore(array, colours, ground) {
  const asking = blocksOf(told.blocks.asking);
  const asked = blocksOf(told.blocks.asked);
  const layers = told.layers.map((layer) => ({
    ...layer,
    peaks: array(layer.peaks),
    shares: array(layer.prefix),
    levels: array(layer.levels),
    rows: layer.peaks.shape[1], // tokens that ask
    seen: layer.prefix.shape[2], // tokens of the prefix that are asked
  }));
  const mostHeads = Math.max(...layers.map((layer) => layer.heads));
  const SHARE = Float32Array.from({ length: 256 }, (_, level) => (level / 255) ** 2); // of a row's peak
  const stage = stageOn(byId("stage"), ground, told.picture.view);
  const touched = window.matchMedia("(hover: none)").matches;

  const state = {
    layer: told.first.layer,
    head: MEAN,
    resting: told.first.token, // what is shown while nothing is pointed at
    pinned: false,
    hovered: null, // a patch, under the pointer or reached by the arrow keys
    strength: 0.8,
    lines: true,
  };

  const tokenName = (token) => (token < prefix ? told.prefix[token] : asking.name(token - prefix));
  const headName = (head) => (head === MEAN ? "mean of heads" : `head ${head}`);

  /** The token whose map is shown. */
  const shown = () => (state.pinned || state.hovered === null ? state.resting : prefix + asking.of[state.hovered]);

  /** The head whose map is shown; layers may have fewer than others. */
  const shownHead = () => Math.min(state.head, layers[state.layer].heads - 1);

  /** What a token takes from each token of the prefix and from each block of patches: shares of one. */
  function sharesOf(layer, head, token) {
    const found = { prefix: new Float32Array(layer.seen), patches: new Float32Array(asked.count) };
    const heads = head === MEAN ? [...Array(layer.heads).keys()] : [head];
    for (const one of heads) {
      const row = one * layer.rows + (layer.pool ? 0 : token);
      const peak = layer.peaks[row] / heads.length;
      for (let place = 0, from = row * asked.count; place < asked.count; place++) {
        found.patches[place] += peak * SHARE[layer.levels[from + place]];
      }
      for (let place = 0; place < layer.seen; place++) {
        found.prefix[place] += layer.shares[row * layer.seen + place] / heads.length;
      }
    }
    return found;
  }

  // Each part of what is shown is drawn from the same shares.

  function drawStage(layer, shares) {
    const each = shares.patches.map((share, block) => share / asked.patches[block]);
    const top = each[greatest(each)];
    const heat = Float32Array.from(asked.of, (block) => each[block] / (top || 1));
    const image = imageOf(heat, columns, colours.heat, (value) => coverOf(value, state.strength));
    stage.draw(canvasOf(image), told.picture.seen, false);
    if (state.lines) stage.lines();
    stage.ring(asked.span(greatest(shares.patches)));
    const token = shown();
    if (!layer.pool && token >= prefix) stage.frame(asking.span(token - prefix), 2.5);
    if (state.pinned && state.hovered !== null) stage.frame(asked.span(asked.of[state.hovered]), 1);
    write("peak", percent(top) + (asked.size > 1 ? " per patch" : ""));
  }

  function tell(layer, shares) {
    const head = shownHead();
    const who = layer.pool ? "the pool’s query" : tokenName(shown());
    const many = who.startsWith("patches");
    const whom = (name) => (name !== who ? name : many ? "themselves" : "itself");
    const best = greatest(shares.patches);
    const first = greatest(shares.prefix);
    const toPrefix = layer.seen > 0 && shares.prefix[first] > shares.patches[best];
    const before = toPrefix ? `${whom(told.prefix[first])}, ${percent(shares.prefix[first])}; of the patches, to ` : "";
    const most = `${whom(asked.name(best))}, ${percent(shares.patches[best])}`;
    write("saying", `${layer.name}, ${headName(head)}: ${who} ${many ? "attend" : "attends"} most to ${before}${most}.`);
    write("hint", hint(layer, shares));
    write("layer-name", layer.short);
    write("head-name", head === MEAN ? "mean" : `${head}`);
    for (const [slider, value, text] of [["layer", state.layer, layer.name], ["head", state.head, headName(head)]]) {
      byId(slider).value = value;
      byId(slider).setAttribute("aria-valuetext", text);
    }
  }

  function hint(layer, shares) {
    if ((state.pinned || layer.pool) && state.hovered !== null) {
      const block = asked.of[state.hovered];
      return `${capitalised(asked.name(block))}: ${percent(shares.patches[block])}.`;
    }
    if (layer.pool) return "The pool asks with one learned query; point at a patch to read its share.";
    if (state.pinned && touched) return "Held. Tap it again to let go.";
    if (state.pinned) return "Held. Point at another patch to read its share; choose this one again to let go.";
    if (touched) return "Tap a patch to see where it looks. The ring marks the patch it attends to most.";
    return state.hovered === null ? "Point at a patch to see where it looks. The ring marks the patch it attends to most." : "Click to hold it.";
  }

  const tokenButtons = told.prefix.map((name, token) => {
    const share = element("small");
    const button = element("button", { type: "button", className: "token" }, name.replace(/^the /, ""), " ", share);
    button.onclick = () => hold(token);
    byId("tokens").append(button);
    return { button, share };
  });

  function drawTokens(layer, shares) {
    tokenButtons.forEach(({ button, share }, token) => {
      const taken = token < layer.seen ? shares.prefix[token] : 0;
      share.textContent = token < layer.seen ? percent(taken) : "not seen";
      button.style.setProperty("--share", `${100 * taken}%`);
      button.setAttribute("aria-pressed", !layer.pool && shown() === token);
    });
  }

  // The wall shows the same token at every layer (columns) and head (rows).

  const lines = [...Array(mostHeads).keys(), MEAN];
  const wall = [];
  const dots = [...document.querySelectorAll("circle[data-layer]")];
  const small = new ImageData(asked.across, asked.down);

  function buildWall() {
    const grid = byId("wall");
    const label = (className, textContent) => element("span", { className, textContent });
    grid.style.setProperty("--layers", layers.length);
    grid.append(label("row", "layer"), ...layers.map((layer) => label("", layer.short)));
    for (const head of lines) {
      grid.append(label("row", head === MEAN ? "mean" : `head ${head}`));
      layers.forEach((layer, place) => {
        const canvas = element("canvas", { width: asked.across, height: asked.down });
        const name = `${layer.name}, ${headName(head)}`;
        const button = element("button", { type: "button", className: "map", title: name }, canvas);
        button.setAttribute("aria-label", name);
        button.onclick = () => look(place, head);
        grid.append(head < layer.heads ? button : label("", ""));
        if (head < layer.heads) wall.push({ layer: place, head, button, pen: canvas.getContext("2d") });
      });
    }
    // One stop of the Tab key for all maps; arrow keys go on from there.
    grid.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key];
      if (!step) return;
      event.preventDefault();
      look(state.layer + step[1], lines[clamp(lines.indexOf(state.head) + step[0], 0, lines.length - 1)]);
      currentMap().button.focus();
    });
  }

  function currentMap() {
    return wall.find((map) => map.layer === state.layer && map.head === shownHead());
  }

  // Hundreds of maps are drawn while the pointer moves: plain loops, and nothing is allocated for each of them.
  function drawWall() {
    const token = shown();
    const pixels = new Uint32Array(small.data.buffer);
    const values = new Float32Array(asked.count);
    const sums = layers.map(() => new Float32Array(asked.count));
    for (const map of wall) {
      const layer = layers[map.layer];
      const sum = sums[map.layer];
      const row = map.head * layer.rows + (layer.pool ? 0 : token);
      let top = 0;
      for (let place = 0, from = row * asked.count; place < asked.count; place++) {
        let value = sum[place]; // complete when the line of means is reached, which is the last
        if (map.head !== MEAN) {
          value = SHARE[layer.levels[from + place]] / asked.patches[place];
          sum[place] += layer.peaks[row] * value;
        }
        values[place] = value;
        if (value > top) top = value;
      }
      const scale = 255 / (top || 1);
      for (let place = 0; place < asked.count; place++) pixels[place] = colours.heat[Math.round(scale * values[place])];
      map.pen.putImageData(small, 0, 0);
    }
    const current = currentMap();
    for (const map of wall) {
      map.button.classList.toggle("current", map === current);
      map.button.tabIndex = map === current ? 0 : -1;
    }
    for (const dot of dots) {
      const here = Number(dot.dataset.layer) === state.layer && [MEAN, Number(dot.dataset.head)].includes(state.head);
      dot.classList.toggle("current", here);
    }
    write("walled", tokenName(token));
  }

  // What hands do.

  let due = false;
  /** Draw once before the screen is next shown, however often it is asked for. */
  function refresh() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      const layer = layers[state.layer];
      const shares = sharesOf(layer, shownHead(), shown());
      drawStage(layer, shares);
      tell(layer, shares);
      drawTokens(layer, shares);
      drawWall();
    });
  }

  function change(changes) {
    Object.assign(state, changes);
    refresh();
  }

  function look(layer, head) {
    change({ layer: clamp(layer, 0, layers.length - 1), head: clamp(head, MEAN, mostHeads - 1) });
  }

  /** Pin a token; the one that is pinned already is let go. */
  function hold(token) {
    change({ pinned: !(state.pinned && state.resting === token), resting: token });
  }

  /** Go on from the patch that is pointed at, or the one that is shown, or the middle of the grid. */
  function step([down, across]) {
    const token = shown();
    const middle = { top: Math.floor(rows / 2), left: Math.floor(columns / 2) };
    const { top, left } = token < prefix ? middle : asking.span(token - prefix);
    const from = state.hovered ?? top * columns + left;
    const row = clamp(Math.floor(from / columns) + down * asking.size, 0, rows - 1);
    const column = clamp((from % columns) + across * asking.size, 0, columns - 1);
    change({ hovered: row * columns + column });
  }

  stage.canvas.addEventListener("pointermove", (event) => change({ hovered: stage.patchAt(event) }));
  stage.canvas.addEventListener("pointerleave", () => change({ hovered: null }));
  stage.canvas.addEventListener("click", (event) => {
    const patch = stage.patchAt(event);
    if (patch !== null) hold(prefix + asking.of[patch]);
  });
  stage.canvas.addEventListener("keydown", (event) => {
    if (event.key in ARROWS) step(ARROWS[event.key]);
    else if (event.key === "Enter" || event.key === " ") {
      hold(state.hovered === null ? state.resting : prefix + asking.of[state.hovered]);
    } else return;
    event.preventDefault();
  });
  byId("explorer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const next = event.shiftKey ? -1 : 1;
    const done = {
      l: () => look(state.layer + next, state.head),
      h: () => look(state.layer, shownHead() + next),
      m: () => look(state.layer, MEAN),
      g: () => byId("lines").click(),
      escape: () => change({ pinned: false, hovered: null, resting: told.first.token }),
    }[event.key.toLowerCase()];
    if (!done) return;
    event.preventDefault();
    done();
  });

  Object.assign(byId("layer"), { min: 0, max: layers.length - 1 });
  Object.assign(byId("head"), { min: MEAN, max: mostHeads - 1 });
  byId("layer").addEventListener("input", (event) => look(Number(event.target.value), state.head));
  byId("head").addEventListener("input", (event) => look(state.layer, Number(event.target.value)));
  byId("strength").addEventListener("input", (event) => change({ strength: event.target.value / 100 }));
  byId("lines").addEventListener("change", (event) => change({ lines: event.target.checked }));
  for (const dot of dots) {
    dot.addEventListener("click", () => look(Number(dot.dataset.layer), Number(dot.dataset.head)));
  }
  buildWall();
  new ResizeObserver(refresh).observe(stage.canvas);
}

// -- heat of whole answers ----------------------------------------------------------------------------------------------

function showHeat(canvas, array, colours, ground) {
  const { levels, over, signed } = told.heats[canvas.dataset.heat];
  const values = Float32Array.from(array(levels), (level) => level / 255);
  const cover = (value) => (signed ? 0.8 * Math.abs(2 * value - 1) : coverOf(value, 0.8));
  const image = canvasOf(imageOf(values, levels.shape[1], signed ? colours.signed : colours.heat, cover));
  const card = stageOn(canvas, ground, told.picture.seen);
  new ResizeObserver(() => card.draw(image, over, told.picture.smooth)).observe(canvas);
}

// -- position similarity ------------------------------------------------------------------------------------------------

function comparePositions(array, colours) {
  const { low, high } = told.positions;
  const { across, down, count, name, place } = blocksOf(told.positions.blocks);
  const levels = array(told.positions.levels);
  const atlas = byId("atlas");
  const large = byId("likeness");
  const times = Math.ceil(12 / across); // how many pixels of the atlas a block has; the gap between maps has one
  const [wide, tall] = [times * across + 1, times * down + 1];
  Object.assign(atlas, { width: across * wide - 1, height: down * tall - 1 });
  Object.assign(large, { width: across, height: down });
  for (const canvas of [atlas, large]) canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;

  const levelsOf = (block) => levels.subarray(block * count, (block + 1) * count);
  const mapOf = (block) => imageOf(Float32Array.from(levelsOf(block), (level) => level / 255), across, colours.likeness);
  const number = (level) => (low + ((high - low) * level) / 255).toFixed(2).replace("-", "−");

  const pen = atlas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  for (let block = 0; block < count; block++) {
    pen.drawImage(canvasOf(mapOf(block)), (block % across) * wide, Math.floor(block / across) * tall, wide - 1, tall - 1);
  }

  let chosen;
  function choose(row, column) {
    chosen = [clamp(row, 0, down - 1), clamp(column, 0, across - 1)];
    const block = chosen[0] * across + chosen[1];
    large.getContext("2d").putImageData(mapOf(block), 0, 0);
    Object.assign(byId("chosen").style, {
      left: `${(100 * chosen[1] * wide) / atlas.width}%`,
      top: `${(100 * chosen[0] * tall) / atlas.height}%`,
      width: `${(100 * (wide - 1)) / atlas.width}%`,
      height: `${(100 * (tall - 1)) / atlas.height}%`,
    });
    const others = Int16Array.from(levelsOf(block), (level, other) => (other === block ? -1 : level));
    const nearest = greatest(others);
    const verb = told.positions.blocks > 1 ? "are" : "is";
    const likest = `${capitalised(name(block))} ${verb} most like ${place(nearest)}: ${number(others[nearest])}.`;
    write("alike", count > 1 ? likest : "");
  }

  function point(event) {
    const { left, top, width, height } = atlas.getBoundingClientRect();
    choose(Math.floor(((event.clientY - top) / height) * down), Math.floor(((event.clientX - left) / width) * across));
  }

  atlas.addEventListener("pointermove", point);
  atlas.addEventListener("pointerdown", point);
  atlas.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    choose(chosen[0] + step[0], chosen[1] + step[1]);
  });
  choose(Math.floor(down / 2), Math.floor(across / 2));
}
