// What the page about segments does when it is touched.
//
// Words: a segment is what a query drew, or all there is of a class; a pixel that was asked about is in the same list. A patch
// is a place of the picture that looks at the others. Levels of attention are square roots of shares of the greatest, those of
// masks are chances.

await wake(told.segments.length, explore);

/** A map of numbers as a small canvas: `colourOf(number, place)` gives red, green, blue and how opaque, or nothing. */
function mapOf(numbers, columns, colourOf) {
  const image = new ImageData(columns, numbers.length / columns);
  for (let place = 0; place < numbers.length; place++) {
    const colour = colourOf(numbers[place], place);
    if (colour) image.data.set(colour, 4 * place);
  }
  const canvas = element("canvas", { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Red, green and blue of a tint. */
function channels(tint) {
  return [1, 3, 5].map((at) => parseInt(tint.slice(at, at + 2), 16));
}

function explore(bytes, picture) {
  const array = (place) => arrayOf(bytes, place);
  const palettes = Object.fromEntries(Object.entries(told.colours).map(([name, place]) => [name, array(place)]));
  const ground = greyed(picture);
  const { segments, methods, attention, masks, patches } = told;
  const owners = array(told.owners);
  const [ownerRows, ownerColumns] = told.owners.shape;
  const whole = [0, 0, width, height];
  const layers = attention.length;
  const heads = Math.max(0, ...attention.map((one) => one.heads));
  const names = [...methods.map((one) => one.name), "mask", ...(patches.length ? ["patch"] : [])];
  const state = {
    segment: 0,
    method: told.first.method,
    layer: told.first.layer < 0 ? Math.max(layers - 1, 0) : clamp(told.first.layer, 0, Math.max(layers - 1, 0)),
    head: told.first.head,
    time: masks.length - 1,
    place: [width / 2, height / 2], // that is pointed at
    strength: 0.8,
  };
  let hovered = NONE;

  // What the address says: #segment=2&method=attention&layer=3&head=0
  function listen() {
    const asked = new URLSearchParams(window.location.hash.slice(1));
    const number = (name, low, high, usual) => {
      const given = Number.parseFloat(asked.get(name));
      return Number.isNaN(given) ? usual : clamp(given, low, high);
    };
    state.segment = Math.round(number("segment", NONE, segments.length - 1, state.segment));
    state.layer = Math.round(number("layer", 0, Math.max(layers - 1, 0), state.layer));
    state.head = Math.round(number("head", MEAN, heads - 1, state.head));
    state.time = Math.round(number("drawn", 0, masks.length - 1, state.time));
    state.place = [number("x", 0, width, state.place[0]), number("y", 0, height, state.place[1])];
    if (names.includes(asked.get("method"))) state.method = asked.get("method");
  }

  const attends = () => state.method === "attention";
  const draws = () => state.method === "mask";
  const points = () => state.method === "patch";
  const method = () => methods.find((one) => one.name === state.method) ?? { signed: false };
  const headName = (head) => (head === MEAN ? "mean of heads" : `head ${head}`);

  // -- heat

  const headOf = (layer) => (state.head < attention[layer].heads ? state.head : MEAN);

  /** The place of a segment's map in a layer. */
  const row = (segment, layer, head) => segment * (attention[layer].heads + 1) + head + 1;

  function attentionHeat(segment, layer, head, strength) {
    const { levels, over } = attention[layer];
    const [, , down, across] = levels.shape;
    const from = row(segment, layer, head) * down * across;
    const values = Float32Array.from(array(levels).subarray(from, from + down * across), (level) => (level / 255) ** 2);
    return { image: heatOf(values, across, palettes.heat, coverOf(false, strength)), over };
  }

  function maskHeat(segment, time, strength) {
    const { levels, over } = masks[time];
    const [, down, across] = levels.shape;
    const from = segment * down * across;
    const values = Float32Array.from(array(levels).subarray(from, from + down * across), (level) => level / 255);
    return { image: heatOf(values, across, palettes.heat, () => strength), over };
  }

  /** The layer whose patches can be pointed at that is nearest to the one chosen. */
  function patchLayer() {
    const away = (one) => Math.abs(one.layer - state.layer);
    return patches.reduce((best, one) => (away(one) < away(best) ? one : best));
  }

  /** Row and column of the patch, or block of patches, that is pointed at. */
  function pointedAt() {
    const layer = patchLayer();
    const [left, top, right, bottom] = layer.over;
    const [rows, columns] = layer.grid;
    const down = clamp(Math.floor(((state.place[1] - top) / (bottom - top)) * rows), 0, rows - 1);
    const across = clamp(Math.floor(((state.place[0] - left) / (right - left)) * columns), 0, columns - 1);
    return { layer, down: Math.floor(down / layer.asking), across: Math.floor(across / layer.asking) };
  }

  function patchHeat() {
    const { layer, down, across } = pointedAt();
    const asking = down * Math.ceil(layer.grid[1] / layer.asking) + across;
    const count = layer.levels.shape[1];
    const values = Float32Array.from(
      array(layer.levels).subarray(asking * count, (asking + 1) * count),
      (level) => (level / 255) ** 2,
    );
    return { image: heatOf(values, layer.columns, palettes.heat, coverOf(false, state.strength)), over: layer.asked_over };
  }

  /** The heat that is shown; the colours of all segments while none is chosen. */
  function heat() {
    if (points()) return patchHeat();
    if (state.segment === NONE) return { image: allSegments(), over: whole };
    if (attends()) return attentionHeat(state.segment, state.layer, headOf(state.layer), state.strength);
    if (draws()) return maskHeat(state.segment, state.time, state.strength);
    const { levels, over, signed } = method();
    const [, down, across] = levels.shape;
    const from = state.segment * down * across;
    const values = Float32Array.from(array(levels).subarray(from, from + down * across), (level) => level / 255);
    return { image: heatOf(values, across, palettes[signed ? "signed" : "heat"], coverOf(signed, state.strength)), over };
  }

  const tints = segments.map((one) => channels(one.tint));

  function allSegments() {
    return mapOf(owners, ownerColumns, (owner) => owner && [...tints[owner - 1], owner - 1 === hovered ? 205 : 120]);
  }

  /** Where a segment ends: its own places beside which another's lie, two thick. */
  function edgeOf(segment) {
    const own = segment + 1;
    const at = (down, across) => owners[down * ownerColumns + across];
    const thick = Math.max(1, Math.round(ownerColumns / 320));
    return mapOf(owners, ownerColumns, (owner, place) => {
      const down = Math.floor(place / ownerColumns);
      const across = place % ownerColumns;
      const near = [[thick, 0], [-thick, 0], [0, thick], [0, -thick]].map(([up, aside]) => {
        const [v, u] = [down + up, across + aside];
        return v >= 0 && u >= 0 && v < ownerRows && u < ownerColumns ? at(v, u) : NONE;
      });
      if (owner === own) return near.some((other) => other !== own) && [...tints[segment], 255];
      return near.includes(own) && [0, 0, 0, 190];
    });
  }

  function ownerAt([x, y]) {
    const across = clamp(Math.floor((x / width) * ownerColumns), 0, ownerColumns - 1);
    const down = clamp(Math.floor((y / height) * ownerRows), 0, ownerRows - 1);
    return owners[down * ownerColumns + across] - 1;
  }

  // -- marks on the picture

  function drawMarks() {
    const marks = byId("marks");
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.replaceChildren();
    if (points()) {
      const { layer, down, across } = pointedAt();
      const [left, top, right, bottom] = layer.over;
      const [high, wide] = [(bottom - top) / layer.grid[0], (right - left) / layer.grid[1]];
      const place = {
        x: left + across * layer.asking * wide,
        y: top + down * layer.asking * high,
        width: layer.asking * wide,
        height: layer.asking * high,
      };
      marks.append(mark("rect", { ...place, class: "patch halo" }), mark("rect", { ...place, class: "patch" }));
      return;
    }
    segments.forEach((one, number) => {
      if (!one.pixel || (state.segment !== NONE && state.segment !== number)) return;
      const [x, y] = one.pixel.map((side) => Math.floor(side) + 0.5);
      const reach = 0.025 * unit;
      const path = { d: `M${x - reach} ${y}H${x + reach}M${x} ${y - reach}V${y + reach}` };
      marks.append(mark("path", { ...path, class: "cross halo" }), mark("path", { ...path, class: "cross", stroke: one.tint }));
    });
  }

  // -- words

  function tell() {
    const one = segments[state.segment];
    if (points()) {
      const { layer, down, across } = pointedAt();
      const asking = down * Math.ceil(layer.grid[1] / layer.asking) + across;
      const owner = ownerAt(state.place);
      const of = owner < 0 ? "" : ` (${segments[owner].name})`;
      const what = layer.asking > 1 ? "These patches" : "This patch";
      write(
        "saying",
        `${what}${of}, layer ${layer.layer}, mean of heads: looked at all others; none gave more than ` +
          `${percent(array(layer.peaks)[asking])}. Point elsewhere.`,
      );
      return;
    }
    if (!one) {
      const pixels = segments.filter((other) => other.pixel).length;
      const counted = [[segments.length - pixels, "segment"], [pixels, "pixel"]].filter(([many]) => many);
      const count = counted.map(([many, what]) => `${many} ${what}${many === 1 ? "" : "s"}`).join(" and ");
      const over = hovered < 0 ? "Choose one to see what it rests on." : `Here: ${segments[hovered].name}.`;
      write("saying", `${count}. ${over}`);
      return;
    }
    const who = `${one.name} (${percent(one.score)})`;
    if (draws()) {
      const [said, chance] = masks[state.time].said[state.segment];
      const when = masks.length === 1 ? "" : state.time === masks.length - 1 ? " in the end" : `, drawing ${state.time}`;
      const itself = told.kind === "queries" ? ` It took itself for ${said} (${percent(chance)}).` : "";
      write("saying", `${who}${when}: how likely each place is its own.${itself}`);
    } else if (attends()) {
      const layer = attention[state.layer];
      const at = row(state.segment, state.layer, headOf(state.layer));
      const whose = told.kind === "queries" ? "its query" : layer.classes && !one.pixel ? "its class's token" : "its patches";
      write(
        "saying",
        `${who}, layer ${state.layer}, ${headName(headOf(state.layer))}: ${whose} took ` +
          `${percent(array(layer.sums)[at])} from the picture, from no cell more than ${percent(array(layer.peaks)[at])}.`,
      );
    } else {
      const what = {
        relevance: "what attention carried to it that speaks for it.",
        rollout: "what attention carried to it through all layers.",
        grad_cam: "where the channels are that speak for it.",
        gradient_times_input: "what speaks for it (red) and against it (blue), pixel by pixel.",
      }[state.method];
      write("saying", `${who}: ${what}`);
    }
  }

  function tellOthers() {
    if (!byId("others")) return;
    const one = segments[state.segment];
    const layer = attention[state.layer];
    if (!one || !layer.others) {
      write("looked", one ? "In this layer only patches looked." : "Choose a segment to see which others it looked at.");
      byId("others").replaceChildren();
      return;
    }
    const from = state.segment * segments.length;
    const shares = array(layer.others).subarray(from, from + segments.length);
    const near = [...shares.keys()]
      .filter((other) => other !== state.segment && !segments[other].pixel)
      .sort((one_, other) => shares[other] - shares[one_]);
    write("looked", `In layer ${state.layer} ${one.name} took ${percent(shares[state.segment])} from itself, and from the others here:`);
    const most = Math.max(...near.map((other) => shares[other]), 1e-9);
    byId("others").replaceChildren(
      ...near.slice(0, 12).map((other) => {
        const bar = element("i");
        bar.style.setProperty("--share", `${(100 * shares[other]) / most}%`);
        bar.style.background = segments[other].tint;
        const name = element("span", { textContent: segments[other].name });
        return element("li", {}, name, element("small", { textContent: percent(shares[other]) }), element("span", { className: "track" }, bar));
      }),
    );
  }

  function tellScale() {
    const signed = method().signed;
    byId("ramp").style.background = rampOf(palettes[signed ? "signed" : "heat"]);
    document.querySelector(".scale").style.visibility = state.segment === NONE && !points() ? "hidden" : "visible";
    let high = "most";
    if (attends() && state.segment !== NONE) {
      high = percent(array(attention[state.layer].peaks)[row(state.segment, state.layer, headOf(state.layer))]);
    }
    write("low", signed ? "against" : draws() || attends() || points() ? "0" : "least");
    write("high", signed ? "for" : draws() ? "1" : high);
  }

  // -- putting it together

  /** A row of small pictures, one for each layer. */
  function drawStrip(name, count, current, heatAt, captionOf, choose) {
    const strip = byId(name);
    if (!strip) return;
    if (!strip.children.length) {
      for (let place = 0; place < count; place++) {
        const button = element("button", {}, element("canvas"), element("small"));
        button.addEventListener("click", () => choose(place));
        strip.append(button);
      }
    }
    [...strip.children].forEach((button, place) => {
      button.setAttribute("aria-pressed", place === current);
      button.lastChild.replaceChildren(...captionOf(place));
      paint(button.firstChild, ground, state.segment === NONE ? null : heatAt(place));
    });
  }

  function drawStrips() {
    for (const who of document.querySelectorAll(".who")) who.textContent = segments[state.segment]?.name ?? "a segment";
    drawStrip(
      "layers",
      layers,
      attends() || points() ? state.layer : NONE,
      (layer) => attentionHeat(state.segment, layer, headOf(layer), 0.85),
      (layer) => [`layer ${layer}${attention[layer].classes ? ", classes" : ""}`],
      (layer) => change({ layer, method: points() ? "patch" : "attention" }),
    );
    drawStrip(
      "masks",
      masks.length,
      draws() ? state.time : NONE,
      (time) => maskHeat(state.segment, time, 0.85),
      (time) => {
        const when = time === masks.length - 1 ? "in the end" : `drawing ${time}`;
        const said = masks[time].said[state.segment];
        return said ? [element("b", { textContent: `${said[0]} ${percent(said[1])}` }), when] : [when];
      },
      (time) => change({ time, method: "mask" }),
    );
  }

  function drawStage() {
    const scene = document.querySelector(".scene");
    scene.style.setProperty("--shape", width / height);
    scene.classList.toggle("pointing", points());
    const shown = heat();
    const canvas = byId("stage");
    const all = state.segment === NONE && !points();
    paint(canvas, all ? picture : ground, shown);
    const outlined = points() ? NONE : all ? hovered : state.segment;
    if (outlined >= 0 && !segments[outlined].pixel) {
      canvas.getContext("2d").drawImage(edgeOf(outlined), 0, 0, canvas.width, canvas.height);
    }
    drawMarks();
    tell();
    tellScale();
  }

  function draw() {
    drawStage();
    for (const button of document.querySelectorAll("[data-segment]")) {
      button.setAttribute("aria-pressed", !points() && Number(button.dataset.segment) === state.segment);
    }
    for (const button of document.querySelectorAll("[data-method]")) {
      button.setAttribute("aria-pressed", button.dataset.method === state.method);
    }
    tellOthers();
    drawStrips();
    const ofMasks = draws();
    const slider = byId("layer");
    if (slider) {
      Object.assign(slider, { min: 0, max: ofMasks ? masks.length - 1 : Math.max(layers - 1, 0), step: 1 });
      slider.value = ofMasks ? state.time : state.layer;
      slider.disabled = ofMasks ? masks.length < 2 : !(attends() || points());
      slider.setAttribute("aria-valuetext", ofMasks ? `drawing ${state.time}` : `layer ${state.layer}`);
      write("layer-name", `${slider.value}`);
    }
    if (byId("head")) {
      byId("head").value = state.head;
      byId("head").disabled = !attends();
      byId("head").setAttribute("aria-valuetext", headName(state.head));
      write("head-name", state.head === MEAN ? "mean" : `${state.head}`);
    }
  }

  function change(changes) {
    Object.assign(state, changes);
    const said = { segment: state.segment, method: state.method };
    if (attends()) Object.assign(said, { layer: state.layer, head: state.head });
    if (draws()) said.drawn = state.time;
    if (points()) Object.assign(said, { layer: state.layer, x: Math.round(state.place[0]), y: Math.round(state.place[1]) });
    history.replaceState(null, "", `#${new URLSearchParams(said)}`);
    draw();
  }

  // -- hands and keys

  /** Where in the picture a pointer is. */
  function placeOf(event) {
    const box = byId("stage").getBoundingClientRect();
    return [
      clamp(((event.clientX - box.left) / box.width) * width, 0, width - 1),
      clamp(((event.clientY - box.top) / box.height) * height, 0, height - 1),
    ];
  }

  let waiting = false;
  byId("stage").addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (points()) state.place = place;
    else if (state.segment === NONE && ownerAt(place) !== hovered) hovered = ownerAt(place);
    else return;
    if (waiting) return; // once a frame is enough
    waiting = true;
    requestAnimationFrame(() => ((waiting = false), drawStage()));
  });
  byId("stage").addEventListener("pointerleave", () => {
    hovered = NONE;
    drawStage();
  });
  byId("stage").addEventListener("click", (event) => {
    const place = placeOf(event);
    if (points()) return change({ place });
    const owner = ownerAt(place);
    change({ segment: owner === state.segment ? NONE : owner });
    document.querySelector(`[data-segment="${owner}"]`)?.scrollIntoView({ block: "nearest" });
  });

  function key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = event.shiftKey ? -1 : 1;
    const keys = {
      s: () => change({ segment: state.segment === NONE ? 0 : turned(state.segment, step, segments.length) }),
      e: () => change({ method: names[turned(names.indexOf(state.method), step, names.length)] }),
      escape: () => change({ segment: NONE, method: points() ? names[0] : state.method }),
    };
    if (draws()) keys.l = () => change({ time: turned(state.time, step, masks.length) });
    else if (layers) keys.l = () => change({ layer: turned(state.layer, step, layers), method: points() ? "patch" : "attention" });
    if (heads > 1) {
      keys.h = () => change({ head: turned(state.head + 1, step, heads + 1) - 1, method: "attention" });
      keys.m = () => change({ head: MEAN });
    }
    const act = keys[event.key.toLowerCase()];
    if (!act) return;
    act();
    event.preventDefault();
  }

  for (const button of document.querySelectorAll("[data-segment]")) {
    button.addEventListener("click", () =>
      change({ segment: Number(button.dataset.segment), method: points() ? names[0] : state.method }),
    );
  }
  for (const button of document.querySelectorAll("[data-method]")) {
    button.addEventListener("click", () => change({ method: button.dataset.method }));
  }
  for (const group of document.querySelectorAll("#segments, .choices, .layers")) group.addEventListener("keydown", arrows);
  byId("layer")?.addEventListener("input", (event) =>
    change(draws() ? { time: Number(event.target.value) } : { layer: Number(event.target.value) }),
  );
  if (byId("head")) Object.assign(byId("head"), { min: MEAN, max: heads - 1, step: 1 });
  byId("head")?.addEventListener("input", (event) => change({ head: Number(event.target.value) }));
  byId("strength").addEventListener("input", (event) => change({ strength: event.target.value / 100 }));
  document.addEventListener("keydown", key);
  window.addEventListener("hashchange", () => (listen(), draw()));
  window.addEventListener("resize", draw);
  listen();
  draw();
}
