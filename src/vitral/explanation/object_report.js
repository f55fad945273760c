// What the page about objects does when it is touched.
//
// Words: an object is one that was found; its query is what it was read from. Levels of attention are square roots of shares of
// the greatest.

const TINTS = ["#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#e69f00", "#d55e00"]; // of maps, from fine to coarse

await wake(told.objects.length, explore);

// -- the explorer -------------------------------------------------------------------------------------------------------

function explore(bytes, picture) {
  const array = (place) => arrayOf(bytes, place);
  const palettes = Object.fromEntries(Object.entries(told.colours).map(([name, place]) => [name, array(place)]));
  const ground = greyed(picture);
  const { objects, methods, attention } = told;
  const heads = attention ? attention.heads : 0;
  const layers = attention ? attention.layers : 0;
  const cells = attention ? attention.grid[0] * attention.grid[1] : 0;
  const found = attention && {
    levels: array(attention.levels),
    peaks: array(attention.peaks),
    sums: array(attention.sums),
    others: array(attention.others),
    points: attention.points && array(attention.points),
    count: attention.points ? attention.points.shape[2] : 0,
  };
  const state = {
    object: 0,
    method: told.first.method,
    layer: told.first.layer < 0 ? layers - 1 : clamp(told.first.layer, 0, layers - 1),
    head: told.first.head,
    strength: 0.8,
    lines: true,
    points: true,
  };

  // What the address says: #object=2&method=attention&layer=3&head=0
  function listen() {
    const asked = new URLSearchParams(window.location.hash.slice(1));
    const number = (name, low, high, usual) => {
      const given = Number.parseInt(asked.get(name), 10);
      return Number.isNaN(given) ? usual : clamp(given, low, high);
    };
    state.object = number("object", NONE, objects.length - 1, state.object);
    state.layer = number("layer", 0, Math.max(layers - 1, 0), state.layer);
    state.head = number("head", MEAN, heads - 1, state.head);
    if (methods.some((one) => one.name === asked.get("method"))) state.method = asked.get("method");
  }

  const method = () => methods.find((one) => one.name === state.method);
  const attends = () => state.method === "attention";
  const headName = (head) => (head === MEAN ? "mean of heads" : `head ${head}`);
  const row = (object, layer, head) => (object * layers + layer) * (heads + 1) + head + 1;

  /** The heat of an object's query in a layer. */
  function attentionHeat(object, layer, head, strength) {
    const from = row(object, layer, head) * cells;
    const values = Float32Array.from(found.levels.subarray(from, from + cells), (level) => (level / 255) ** 2);
    const image = heatOf(values, attention.grid[1], palettes.heat, coverOf(false, strength));
    return { image, over: attention.over };
  }

  /** The heat that is shown; nothing while no object is chosen. */
  function heat() {
    if (state.object === NONE) return null;
    if (attends()) return attentionHeat(state.object, state.layer, state.head, state.strength);
    const { levels, over, signed } = method();
    const [, down, across] = levels.shape;
    const from = state.object * down * across;
    const values = Float32Array.from(array(levels).subarray(from, from + down * across), (level) => level / 255);
    return { image: heatOf(values, across, palettes[signed ? "signed" : "heat"], coverOf(signed, state.strength)), over };
  }

  /** What the query of an object took from each object, in the layer that is shown. */
  function looked(object) {
    const from = (object * layers + state.layer) * objects.length;
    return found.others.subarray(from, from + objects.length);
  }

  /** The other objects it looked at, the most first; those read from the same query are the object itself. */
  function friends(object) {
    const shares = looked(object);
    return [...shares.keys()]
      .filter((other) => attention.queries[other] !== attention.queries[object])
      .sort((one, other) => shares[other] - shares[one]);
  }

  // -- marks on the picture

  const centre = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2];

  function boxMark(one, number) {
    const [left, top, right, bottom] = one.box;
    const place = { x: left, y: top, width: Math.max(right - left, 0.1), height: Math.max(bottom - top, 0.1) };
    const chosen = state.object === number;
    const group = mark("g", { class: chosen ? "chosen" : state.object === NONE ? "" : "faded" });
    const box = mark("rect", { ...place, class: "box", stroke: one.tint });
    box.addEventListener("click", () => choose(number));
    group.append(mark("title", {}, `${one.name}, ${percent(one.score)}`), mark("rect", { ...place, class: "under" }), box);
    if (chosen || state.object === NONE) {
      const size = 0.027 * unit;
      const text = mark("text", { "font-size": size, fill: readableOn(one.tint) }, `${one.name} ${Math.round(100 * one.score)}%`);
      const tag = mark("rect", { class: "tag", fill: one.tint });
      group.append(tag, text);
      byId("marks").append(group); // its length is known once it is there
      const wide = text.getComputedTextLength() + 0.7 * size;
      const x = clamp(left, 0, Math.max(0, width - wide));
      const y = top - 1.35 * size >= 0 ? top - 1.35 * size : Math.min(top, height - 1.35 * size);
      for (const [name, value] of Object.entries({ x, y, width: wide, height: 1.35 * size })) tag.setAttribute(name, value);
      text.setAttribute("x", x + 0.35 * size);
      text.setAttribute("y", y + size);
    }
    return group;
  }

  function lineMarks() {
    const [x, y] = centre(objects[state.object].box);
    const shares = looked(state.object);
    return friends(state.object)
      .filter((other) => shares[other] > 0.01)
      .flatMap((other) => {
        const [u, v] = centre(objects[other].box);
        const wide = 0.8 + 12 * shares[other];
        const ends = { x1: x, y1: y, x2: u, y2: v, class: "line" };
        return [
          mark("line", { ...ends, stroke: "rgb(0 0 0 / 0.55)", "stroke-width": wide + 1.6 }),
          mark("line", { ...ends, stroke: objects[other].tint, "stroke-width": wide }),
        ];
      });
  }

  function dotMarks() {
    const from = (state.object * layers + state.layer) * found.count * 4;
    const places = [...Array(found.count).keys()]
      .map((place) => found.points.subarray(from + 4 * place, from + 4 * place + 4))
      .sort((one, other) => other[2] - one[2]); // small ones lie on top
    return places
      .map(([x, y, weight, level]) => ({ x, y, radius: unit * Math.min(0.055 * Math.sqrt(weight), 0.03), level }))
      .filter(({ radius }) => radius > 0.0015 * unit)
      .map(({ x, y, radius, level }) =>
        mark("circle", { class: "dot", cx: x, cy: y, r: radius, fill: TINTS[level % TINTS.length], "fill-opacity": 0.9 }),
      );
  }

  function drawMarks() {
    const marks = byId("marks");
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.replaceChildren();
    const last = state.object === NONE ? [] : [state.object];
    const order = [...objects.keys()].reverse().filter((number) => number !== state.object);
    // Small boxes lie over large ones, so that all can be reached.
    const area = ({ box: [left, top, right, bottom] }) => (right - left) * (bottom - top);
    order.sort((one, other) => area(objects[other]) - area(objects[one]));
    for (const number of order) marks.append(boxMark(objects[number], number));
    if (state.object !== NONE && attends()) {
      if (state.lines) marks.append(...lineMarks());
      if (found.points && state.points) marks.append(...dotMarks());
    }
    for (const number of last) marks.append(boxMark(objects[number], number));
  }

  // -- words

  function tell() {
    const one = objects[state.object];
    if (!one) {
      write("saying", `${objects.length} object${objects.length === 1 ? "" : "s"}. Choose one to see what it rests on.`);
      return;
    }
    const who = `${one.name} (${percent(one.score)})`;
    if (!attends()) {
      const what = {
        relevance: "what attention carried to it that speaks for its class.",
        grad_cam: "where the channels are that speak for its class.",
        gradient_times_input: "what speaks for its class (red) and against it (blue), pixel by pixel.",
      }[state.method];
      write("saying", `${who}: ${what}`);
      return;
    }
    const most = found.peaks[row(state.object, state.layer, state.head)];
    const share = found.sums[row(state.object, state.layer, state.head)];
    const whose = attention.kind === "tokens" ? "its token" : "its query";
    const verb = {
      maps: `looked at the whole picture; no cell gave it more than ${percent(most)}`,
      samples: `sampled ${found.count} places`,
      tokens: `took ${percent(share)} of what it took in from the picture`,
    }[attention.kind];
    write("saying", `${who}, layer ${state.layer}, ${headName(state.head)}: ${whose} ${verb}.`);
  }

  function tellOthers() {
    const one = objects[state.object];
    for (const who of document.querySelectorAll(".who")) who.textContent = one ? one.name : "an object";
    if (!one) {
      write("looked", "Choose an object to see which others it looked at.");
      byId("others").replaceChildren();
      return;
    }
    const shares = looked(state.object);
    const itself = shares[state.object];
    const near = friends(state.object);
    const seen = new Set();
    const theirs = near.reduce((sum, other) => {
      const again = seen.has(attention.queries[other]);
      seen.add(attention.queries[other]);
      return again ? sum : sum + shares[other];
    }, 0);
    const rest = attention.kind === "tokens" ? "tokens that found nothing, and the picture" : "queries that found nothing";
    write(
      "looked",
      `In layer ${state.layer} ${one.name} took ${percent(itself)} from itself, ${percent(theirs)} from the other ` +
        `objects here, and the rest from ${rest}.`,
    );
    const most = Math.max(...near.map((other) => shares[other]), 1e-9);
    byId("others").replaceChildren(
      ...near.slice(0, 12).map((other) => {
        const bar = element("i");
        bar.style.setProperty("--share", `${(100 * shares[other]) / most}%`);
        bar.style.background = objects[other].tint;
        const name = element("span", { textContent: objects[other].name });
        return element("li", {}, name, element("small", { textContent: percent(shares[other]) }), element("span", { className: "track" }, bar));
      }),
    );
  }

  function tellScale() {
    const signed = method().signed;
    const palette = palettes[signed ? "signed" : "heat"];
    byId("ramp").style.background = rampOf(palette);
    const high = attends() && state.object !== NONE ? percent(found.peaks[row(state.object, state.layer, state.head)]) : "most";
    write("low", signed ? "against" : attends() ? "0" : "least");
    write("high", signed ? "for" : high);
    const keys = [];
    if (attends() && state.object !== NONE && found.points && state.points) {
      for (let level = 0; level < attention.levelled; level++) {
        const key = element("i", { className: "key" });
        key.style.setProperty("--tint", TINTS[level % TINTS.length]);
        const name = level === 0 ? "finest map" : level === attention.levelled - 1 ? "coarsest map" : `map ${level}`;
        keys.push(element("span", {}, key, attention.levelled === 1 ? "places sampled" : name));
      }
    }
    byId("legend").replaceChildren(...keys);
  }

  // -- putting it together

  function drawStrip() {
    if (!attention) return;
    const strip = byId("layers");
    if (!strip.children.length) {
      for (let layer = 0; layer < layers; layer++) {
        const button = element("button", {}, element("canvas"), element("small", { textContent: `layer ${layer}` }));
        button.addEventListener("click", () => change({ layer, method: "attention" }));
        strip.append(button);
      }
    }
    [...strip.children].forEach((button, layer) => {
      button.setAttribute("aria-pressed", attends() && layer === state.layer);
      button.setAttribute("aria-label", `Layer ${layer}`);
      const shown = state.object === NONE ? null : attentionHeat(state.object, layer, state.head, 0.85);
      paint(button.firstChild, ground, shown);
    });
  }

  function draw() {
    document.querySelector(".scene").style.setProperty("--shape", width / height);
    paint(byId("stage"), state.object === NONE ? picture : ground, heat());
    drawMarks();
    tell();
    tellScale();
    for (const button of document.querySelectorAll("[data-object]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.object) === state.object);
    }
    for (const button of document.querySelectorAll("[data-method]")) {
      button.setAttribute("aria-pressed", button.dataset.method === state.method);
    }
    if (!attention) return;
    tellOthers();
    drawStrip();
    for (const [slider, value, text, short] of [
      ["layer", state.layer, `layer ${state.layer}`, `${state.layer}`],
      ["head", state.head, headName(state.head), state.head === MEAN ? "mean" : `${state.head}`],
    ]) {
      if (!byId(slider)) continue;
      byId(slider).value = value;
      byId(slider).disabled = !attends();
      byId(slider).setAttribute("aria-valuetext", text);
      write(`${slider}-name`, short);
    }
    for (const name of ["lines", "points"]) if (byId(name)) byId(name).disabled = !attends();
  }

  function change(changes) {
    Object.assign(state, changes);
    const said = { object: state.object, method: state.method };
    if (attends()) Object.assign(said, { layer: state.layer, head: state.head });
    history.replaceState(null, "", `#${new URLSearchParams(said)}`);
    draw();
  }

  function choose(object) {
    change({ object });
    document.querySelector(`[data-object="${object}"]`)?.scrollIntoView({ block: "nearest" });
  }

  function key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = event.shiftKey ? -1 : 1;
    const names = methods.map((one) => one.name);
    const keys = {
      o: () => choose(state.object === NONE ? 0 : turned(state.object, step, objects.length)),
      e: () => change({ method: names[turned(names.indexOf(state.method), step, names.length)] }),
      escape: () => change({ object: NONE }),
    };
    if (attention) {
      keys.l = () => change({ layer: turned(state.layer, step, layers), method: "attention" });
      if (heads > 1) keys.h = () => change({ head: turned(state.head + 1, step, heads + 1) - 1, method: "attention" });
      keys.m = () => change({ head: MEAN });
    }
    const act = keys[event.key.toLowerCase()];
    if (!act) return;
    act();
    event.preventDefault();
  }

  for (const button of document.querySelectorAll("[data-object]")) {
    button.addEventListener("click", () => change({ object: Number(button.dataset.object) }));
  }
  for (const button of document.querySelectorAll("[data-method]")) {
    button.addEventListener("click", () => change({ method: button.dataset.method }));
  }
  for (const group of document.querySelectorAll("#objects, .choices, #layers")) group.addEventListener("keydown", arrows);
  for (const [slider, low, high] of [["layer", 0, layers - 1], ["head", MEAN, heads - 1]]) {
    if (!byId(slider)) continue;
    Object.assign(byId(slider), { min: low, max: high, step: 1 });
    byId(slider).addEventListener("input", (event) => change({ [slider]: Number(event.target.value) }));
  }
  byId("strength").addEventListener("input", (event) => change({ strength: event.target.value / 100 }));
  for (const name of ["lines", "points"]) byId(name)?.addEventListener("change", (event) => change({ [name]: event.target.checked }));
  document.addEventListener("keydown", key);
  window.addEventListener("hashchange", () => (listen(), draw()));
  window.addEventListener("resize", draw);
  listen();
  draw();
}
