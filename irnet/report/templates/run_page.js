// What moves on the page of a run: choosing images and boxes, and drawing them. Needs nothing but the files beside it.
"use strict";

const irnetPage = (() => {
  const PER_STRIP = 24, ROWS = 15, KEPT = 8;
  const CONV = 0;  // of the predictions
  const OUTCOMES = {
    gained: { word: "corrected", mark: "✓", style: "up", says: "corrected by reasoning" },
    lost: { word: "broken", mark: "✗", style: "down", says: "broken by reasoning" },
    both: { word: "wrong", mark: "✗", style: "both", says: "wrong before and after" },
    kept: { word: "right", mark: "✓", style: "soft", says: "right before and after" },
  };
  const images = [], chunks = new Map(), waiting = new Map();
  let run = null, shown = [], at = 0, region = 0, layer = -1, current = null;
  const $ = (id) => document.getElementById(id);

  // ---------------------------------------------------------------------------------------------- small helpers

  /** An element with attributes and children; text is never read as HTML. */
  function make(tag, attributes, ...children) {
    const svg = ["svg", "rect", "line", "text", "g", "defs", "marker", "path", "circle", "title"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "onclick") element.addEventListener("click", value);
      else if (name === "style") Object.assign(element.style, value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const plain = (c) => run.classes[c].replaceAll("_", " ");
  const percent = (score, digits = 0) => `${(100 * score / run.scale).toFixed(digits)}\u00a0%`;
  const count = (n, word, plural) => `${n.toLocaleString("en")} ${n === 1 ? word : plural || word + "es"}`;
  const option = (value, text) => make("option", { value }, text);

  /** "gained", "lost", "both" (wrong) or "kept" (right), by the true class and the two answers. */
  function outcome(label, before, after) {
    if (after === label) return before === label ? "kept" : "gained";
    return before === label ? "lost" : "both";
  }

  // ------------------------------------------------------------------------------------------------------ the data

  function index(part, entries) {
    for (const [name, picture, chunk, position, labels, before, after, rise] of entries) {
      const outcomes = labels.map((label, r) => outcome(label, before[r], after[r]));
      images.push({ number: images.length, name, picture, chunk, position, labels, before, after, rise, outcomes });
    }
  }

  function chunk(number, records) {
    chunks.set(number, records);
    if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
  }

  /** The record of an image; its chunk is loaded as a script, the only way in a page that is a file. */
  function record(image) {
    const records = chunks.get(image.chunk);
    if (records) return Promise.resolve(records[image.position]);
    if (!waiting.has(image.chunk)) {
      waiting.set(image.chunk, new Promise((resolve, reject) => {
        const script = make("script", { src: `data/chunk-${image.chunk}.js` });
        const end = (then) => () => { script.remove(); waiting.delete(image.chunk); then(); };
        script.onload = end(resolve);
        script.onerror = end(() => reject(new Error(`${script.getAttribute("src")} cannot be read`)));
        document.head.append(script);
      }));
    }
    return waiting.get(image.chunk).then(() => chunks.get(image.chunk)[image.position]);
  }

  // ------------------------------------------------------------------------------------------- choosing of images

  /** The wrong answers for a box: the ConvNet's, the final one, both or none. */
  const mistakes = (image, r) => new Set([image.before[r], image.after[r]].filter((c) => c !== image.labels[r]));

  /** The boxes of an image that the choice takes. */
  function matching(image, but) {
    const asked = { outcome: $("outcome").value, label: $("class").value, mistake: $("mistake").value };
    const rows = [];
    for (let r = 0; r < image.labels.length; r++) {
      if (but !== "outcome" && asked.outcome !== "all" && image.outcomes[r] !== asked.outcome) continue;
      if (but !== "class" && asked.label !== "" && image.labels[r] !== Number(asked.label)) continue;
      if (but !== "mistake" && asked.mistake !== "" && !mistakes(image, r).has(Number(asked.mistake))) continue;
      rows.push(r);
    }
    return rows;
  }

  /** By how much the choice puts an image first: two numbers, of which the second decides among equals. */
  function rank(image, rows) {
    const sum = (of) => rows.reduce((total, r) => total + of(r), 0);
    const rise = sum((r) => image.rise[r]) / run.scale;
    const net = sum((r) => ({ gained: 1, lost: -1 })[image.outcomes[r]] || 0);
    return { gain: [net, rise], loss: [-net, -rise], rise: [rise, 0], data: [-image.number, 0] }[$("order").value];
  }

  function choose(first) {
    options();
    const everything = $("outcome").value === "all" && $("class").value === "" && $("mistake").value === "";
    const ranked = [];
    for (const image of images) {
      const rows = matching(image);
      if (rows.length || everything) ranked.push([image, rank(image, rows)]);
    }
    ranked.sort((a, b) => b[1][0] - a[1][0] || b[1][1] - a[1][1] || a[0].number - b[0].number);
    shown = ranked.map(([image]) => image);
    $("nothing").hidden = shown.length > 0;
    for (const id of ["image", "strip", "strip-heading"]) $(id).hidden = shown.length === 0;
    if (shown.length === 0) $("image").setAttribute("aria-busy", "false");
    if (shown.length) return show(Math.max(0, shown.indexOf(first)));
    current = null;
    $("position").textContent = "No image";
    for (const id of ["previous", "next"]) $(id).setAttribute("aria-disabled", "true");
  }

  /** Fill the lists of what can be chosen; each counts the boxes that the other two leave. */
  function options() {
    const tally = { outcome: new Map(), class: new Map(), mistake: new Map() };
    const add = (map, key) => map.set(key, (map.get(key) || 0) + 1);
    for (const image of images) {
      for (const r of matching(image, "outcome")) { add(tally.outcome, image.outcomes[r]); add(tally.outcome, "all"); }
      for (const r of matching(image, "class")) add(tally.class, image.labels[r]);
      for (const r of matching(image, "mistake")) for (const c of mistakes(image, r)) add(tally.mistake, c);
    }
    const names = Object.keys(OUTCOMES).filter((name) => run.reasons || ["both", "kept"].includes(name));
    const says = (name) => run.reasons ? OUTCOMES[name].says : OUTCOMES[name].word;
    fill("outcome", [["all", `all (${(tally.outcome.get("all") || 0).toLocaleString("en")})`],
      ...names.map((name) => [name, `${says(name)} (${(tally.outcome.get(name) || 0).toLocaleString("en")})`])]);
    for (const [id, any] of [["class", "any class"], ["mistake", "anything"]]) {
      const chosen = $(id).value;
      if (chosen !== "" && !tally[id].has(Number(chosen))) tally[id].set(Number(chosen), 0);
      const sorted = [...tally[id]].sort((a, b) => plain(a[0]) < plain(b[0]) ? -1 : 1);
      fill(id, [["", any], ...sorted.map(([c, n]) => [String(c), `${plain(c)} (${n.toLocaleString("en")})`])]);
    }
  }

  function fill(id, entries) {
    const chosen = $(id).value;
    $(id).replaceChildren(...entries.map(([value, text]) => option(value, text)));
    $(id).value = chosen;
  }

  /** Choose by a class, an outcome and a wrong answer, from elsewhere on the page. */
  function see(asked) {
    const names = { outcome: "all", class: "", mistake: "", order: "gain", ...asked };
    for (const [id, value] of Object.entries(names)) {
      if (![...$(id).options].some((one) => one.value === value)) $(id).append(option(value, ""));
      $(id).value = value;
    }
    choose();
    $("viewer-heading").scrollIntoView();
    $("viewer-heading").focus({ preventScroll: true });
  }

  // ------------------------------------------------------------------------------------------------- one image

  async function show(number, chosen) {
    at = number;
    const image = shown[at];
    const tell = image.name + (image.outcomes.length ? ": " + summary(image) : ": no boxes");
    $("position").replaceChildren(
      make("strong", {}, `Image ${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`),
      make("span", { class: "soft" }, ` · ${tell}`));
    // A button that is disabled would lose the focus.
    $("previous").setAttribute("aria-disabled", String(at === 0));
    $("next").setAttribute("aria-disabled", String(at === shown.length - 1));
    strip();
    $("image").setAttribute("aria-busy", "true");
    let answers;
    try {
      answers = await record(image);
    } catch (error) {
      if (image !== shown[at]) return;
      $("image").setAttribute("aria-busy", "false");
      $("position").textContent = `${error.message}: the folder is not complete.`;
      return;
    }
    if (image !== shown[at]) return;  // another was asked for meanwhile
    current = { image, ...answers };
    const rows = matching(image);
    const order = $("order").value === "loss" ? ["lost", "gained", "both", "kept"] : ["gained", "lost", "both", "kept"];
    const key = (r) => [rows.includes(r) ? 0 : 1, order.indexOf(image.outcomes[r]), -image.rise[r], r];
    const sorted = image.labels.map((_, r) => key(r))
      .sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
    current.order = sorted.map((keys) => keys[3]);
    region = chosen === undefined ? current.order[0] : chosen;
    if (layer >= (current.memory ? current.memory[0].length : 0)) layer = -1;
    draw();
    $("image").setAttribute("aria-busy", "false");
  }

  function summary(image) {
    const n = (name) => image.outcomes.filter((one) => one === name).length;
    const parts = [count(image.outcomes.length, "box")];
    for (const name of ["gained", "lost", "both"]) if (n(name)) parts.push(`${n(name)} ${OUTCOMES[name].word}`);
    return parts.join(", ");
  }

  function strip() {
    const start = PER_STRIP * Math.floor(at / PER_STRIP), focused = $("strip").contains(document.activeElement);
    $("strip").replaceChildren(...shown.slice(start, start + PER_STRIP).map((image, k) => {
      const n = (name) => image.outcomes.filter((one) => one === name).length;
      const text = run.reasons ? `+${n("gained")} −${n("lost")}` : `${n("both")} wrong`;
      const label = `Image ${start + k + 1}, ${image.name}: ${summary(image)}`;
      const button = make("button", {
        type: "button",
        "aria-label": label,
        "aria-current": start + k === at ? "true" : null,
        onclick: () => show(start + k),
      }, make("img", { loading: "lazy", src: image.picture, alt: "" }), text);
      return make("li", {}, button);
    }));
    const item = $("strip").children[at - start];
    if (focused) focusOn("strip", at - start);
    $("strip").scrollLeft = item.offsetLeft - $("strip").offsetLeft - ($("strip").clientWidth - item.clientWidth) / 2;
  }

  function draw() {
    drawLayers();
    drawStage();
    drawRegion();
    drawList();
  }

  function drawLayers() {
    const memory = current.memory, names = ["boxes only"];
    if (memory) memory[0].forEach((_, k) => names.push(`memory after write ${k + 1}`));
    $("layers").replaceChildren(...names.map((name, k) => make("button", {
      type: "button",
      "aria-pressed": String(layer === k - 1),
      onclick: () => { layer = k - 1; draw(); focusOn("layers", k); },
    }, name)));
    $("layers").hidden = !memory;
    const note = layer < 0 ? [] : [make("p", {},
      "Bright: where the spatial memory is strong (root mean square over its channels). " +
      `All writes share one scale, from 0 to ${memory[4]}.`)];
    const outcomes = Object.keys(OUTCOMES).filter((name) => current.image.outcomes.includes(name));
    const frames = outcomes.map((name) => make("span", {},
      make("i", { class: "swatch", style: { background: FRAMES[name][0] } }),
      run.reasons ? OUTCOMES[name].says : OUTCOMES[name].word));
    if (causes().some((cause) => cause.kind === "region")) {
      frames.push(make("span", {},
        make("i", { class: "swatch round" }), "where the answer of the chosen box comes from"));
    }
    $("caption").replaceChildren(make("p", { class: "frames" }, ...frames), ...note);
  }

  /** Focus the k-th button of a list, or of the items of one. */
  const focusOn = (id, k) => $(id).querySelectorAll("button")[k].focus({ preventScroll: true });
  /** The edges that changed the chosen box's answer, with the score that it would have without each: those that cost
      half a point, or the strongest alone where none does. */
  function causes() {
    const here = region === undefined ? 0 : current.topScores[region][0];
    const edges = (current.causes[region] || []).map(([kind, type, source, target, effect]) =>
      ({ kind, type, source, target, left: here * Math.exp(-effect) }));
    const strong = edges.filter((cause) => here - cause.left >= run.scale / 200);
    return strong.length ? strong : edges.slice(0, 1);
  }

  const FRAMES = { gained: ["#2fd283", 3], lost: ["#ff5a4d", 3], both: ["#ffbe3d", 3], kept: ["#f4f4f4", 1] };

  function drawStage() {
    const { image, width, height, boxes } = current;
    const alt = `${image.name}: ${image.labels.length ? summary(image) : "no boxes"}`;
    const layers = [make("img", { src: image.picture, alt })];
    if (layer >= 0) {
      const [names, across, down, stride] = current.memory;
      const bounds = { left: -50 * stride / width + "%", top: -50 * stride / height + "%",
        width: 100 * across * stride / width + "%", height: 100 * down * stride / height + "%" };
      layers.push(make("img", { class: "heat", src: names[layer], style: bounds,
        alt: `Heat map of the spatial memory after write ${layer + 1} of ${names.length}` }));
    }
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", preserveAspectRatio: "none" });
    const area = (r) => (boxes[r][2] - boxes[r][0]) * (boxes[r][3] - boxes[r][1]);
    const order = boxes.map((_, r) => r).sort((a, b) => (a === region) - (b === region) || area(b) - area(a));
    for (const r of order) svg.append(frame(r));
    arrows(svg);
    layers.push(svg);
    if (region !== undefined) layers.push(tag(boxes[region], width, height));
    $("stage").style.aspectRatio = `${width} / ${height}`;
    $("stage").style.width = `min(100%, ${(62 * width / height).toFixed(2)}vh)`;
    $("stage").replaceChildren(...layers);
  }

  /** A frame with a dark rim, so that it shows on any ground, whatever the size of the image. */
  function frame(r) {
    const { image, boxes } = current, [x1, y1, x2, y2] = boxes[r];
    const [colour, thick] = FRAMES[image.outcomes[r]], more = r === region ? 3 : 0;
    const at = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, "vector-effect": "non-scaling-stroke" };
    return make("g", { onclick: () => { region = r; draw(); } }, make("title", {}, `Box ${r + 1}: ${change(image, r)}`),
      make("rect", { ...at, fill: "transparent", stroke: "#000", "stroke-width": thick + more + 2 }),
      make("rect", { ...at, fill: "none", stroke: colour, "stroke-width": thick + more }));
  }

  /** What the answers of a box were: one name, or two where reasoning changed it. */
  function change(image, r) {
    const [before, after] = [plain(image.before[r]), plain(image.after[r])];
    return image.before[r] === image.after[r] ? after : `${before} → ${after}`;
  }

  /** The chosen box's answers as a label beside it, inside the picture. */
  function tag([x1, y1, x2, y2], width, height) {
    const side = x1 + x2 < width ? { left: `${100 * x1 / width}%` } : { right: `${100 * (1 - x2 / width)}%` };
    const end = y1 > 0.12 * height
      ? { bottom: `${100 * (1 - y1 / height)}%` }
      : { top: `${100 * Math.min(y2 / height, 0.9)}%` };
    return make("div", { class: "tag", "aria-hidden": "true", style: { ...side, ...end } },
      change(current.image, region));
  }

  /** Lines from the regions that decided to those that heard them, with the numbers of the list beside the image. */
  function arrows(svg) {
    const { width, height, boxes } = current, unit = Math.max(width, height) / 100;
    const middle = (r) => [(boxes[r][0] + boxes[r][2]) / 2, (boxes[r][1] + boxes[r][3]) / 2];
    const ink = { fill: "#5b3fd6", stroke: "#fff", "stroke-width": unit / 3 };
    const numbers = new Map();
    causes().forEach(({ kind, source, target }, k) => {
      if (kind !== "region") return;
      numbers.set(source, [...(numbers.get(source) || []), k + 1]);
      const [[x1, y1], [x2, y2]] = [middle(source), middle(target)];
      const ends = { x1, y1, x2, y2, "vector-effect": "non-scaling-stroke", "stroke-linecap": "round" };
      svg.append(make("line", { ...ends, stroke: "#fff", "stroke-width": 6 }),
        make("line", { ...ends, stroke: ink.fill, "stroke-width": 3 }));
      const angle = Math.atan2(y2 - y1, x2 - x1);
      const wing = (turn) => `${x2 - 3 * unit * Math.cos(angle + turn)} ${y2 - 3 * unit * Math.sin(angle + turn)}`;
      svg.append(make("path", { ...ink, d: `M ${x2} ${y2} L ${wing(0.45)} L ${wing(-0.45)} Z` }));
    });
    for (const [source, ranks] of numbers) {
      const [x, y] = middle(source), half = unit * (1.2 + 1.2 * ranks.length);
      svg.append(
        make("rect", { ...ink, x: x - half, y: y - 2.4 * unit, width: 2 * half, height: 4.8 * unit, rx: 2.4 * unit }),
        make("text", { x, y: y + unit, "text-anchor": "middle", fill: "#fff", style: { fontSize: `${3 * unit}px` } },
          ranks.join(",")));
    }
  }

  // ------------------------------------------------------------------------------------------------ one region

  function drawRegion() {
    if (region === undefined) {
      $("region").replaceChildren(make("p", {}, "This image has no boxes."));
      return;
    }
    const { image } = current, r = region, label = image.labels[r], kind = image.outcomes[r];
    const parts = [make("h3", {}, `Box ${r + 1}: truly ${plain(label)}`)];
    const says = {
      gained: "Reasoning corrected the ConvNet.",
      lost: "Reasoning broke a right answer.",
      both: run.reasons ? "Wrong before and after reasoning." : "Wrong.",
      kept: run.reasons ? "Right before and after reasoning." : "Right.",
    }[kind];
    parts.push(make("p", { class: `verdict ${OUTCOMES[kind].style}` }, says));
    const rows = [answer("ConvNet", image.before[r], current.scores[r][CONV], label)];
    if (run.reasons) rows.push(answer("with reasoning", image.after[r], current.topScores[r][0], label));
    parts.push(make("table", { class: "answers" },
      make("caption", { class: "hidden" }, "Both answers"), make("tbody", {}, ...rows)));
    if (run.reasons) parts.push(...why(r), ...trail(r));
    const attributes = Object.entries(current.attributes).map(([name, values]) => `${name}: ${values[r]}`);
    if (attributes.length) parts.push(make("p", { class: "soft" }, `In the annotations, ${attributes.join(", ")}.`));
    $("region").replaceChildren(...parts);
  }

  const tick = (right) => make("td", { class: right ? "up" : "down" }, right ? "✓ right" : "✗ wrong");

  function answer(who, c, score, label) {
    return make("tr", {}, make("th", { scope: "row" }, who), make("td", {}, make("strong", {}, plain(c))),
      make("td", {}, percent(score)), tick(c === label));
  }

  /** Why no edge is shown for a box. */
  function without(r) {
    const { image } = current, { kinds, measured } = run.edges;
    if (image.before[r] === image.after[r]) return "The ConvNet and reasoning give the same answer.";
    if (!kinds.length) return "This model has no edges between regions or classes that could be shown.";
    if (current.causes[r]) {
      return "No edge that was removed by itself lowers this answer: many say the same, " +
        "or it comes from elsewhere in the model.";
    }
    if (!measured) return "No edges were measured for this page (irnet page --edges).";
    return `The edges of this box were not measured: they are for at most ${measured} changed boxes of an image, ` +
      "those corrected or broken first.";
  }

  /** The edges without which the answer would be less sure, in words. */
  function why(r) {
    const edges = causes(), { image } = current;
    if (!edges.length) {
      return [make("h4", {}, "Why"), make("p", {}, without(r))];
    }
    const here = current.topScores[r][0], single = here - edges[0].left < run.scale / 200;
    const digits = single ? 2 : 0;
    const item = (cause, k) => make("li", {},
      make("span", { class: "mark" }, String(k + 1)),
      make("span", {}, ...sentence(cause), make("span", { class: "soft" },
        ` Without this it would get ${percent(cause.left, digits)}, not ${percent(here, digits)}.`)));
    return [
      make("h4", {}, `Why ${plain(image.after[r])}?`),
      single ? make("p", {}, "No single edge decides: many say the same. The strongest:") : "",
      make("ol", { class: "causes" }, ...edges.map(item)),
    ];
  }

  const WHERE = {
    left: "to the left of", right: "to the right of", above: "above", below: "below", overlap: "overlapping",
  };

  function sentence({ kind, type, source, target }) {
    const { image } = current;
    if (kind === "region") {
      const whom = target === region ? "this box" : `box ${target + 1}, ${plain(image.after[target])}`;
      const truly = image.outcomes[source] === "kept" || image.outcomes[source] === "gained"
        ? ""
        : `, truly ${plain(image.labels[source])}`;
      return ["The ", make("strong", {}, `${plain(image.after[source])} (box ${source + 1}${truly})`),
        ` ${WHERE[type]} ${whom}.`];
    }
    return ["In the graph of classes: ", make("strong", {}, `${plain(source)} → ${plain(target)}`),
      ` (${type.replaceAll("_", " ")}).`];
  }

  /** Answer, score and attention of every prediction, and the energy of the memory. */
  function trail(r) {
    const { image, best, scores, attention, energy } = current, label = image.labels[r];
    const rows = run.keys.map((key, k) => make("tr", {},
      make("th", { scope: "row" }, key),
      make("td", { class: best[r][k] === label ? "up" : "down" }, plain(best[r][k])),
      make("td", {}, percent(scores[r][k])),
      make("td", {}, bar(attention[r][k], run.colours[key.split(" ")[0]]), ` ${percent(attention[r][k])}`)));
    const columns = ["prediction", "answer", "score", "attention"];
    const head = make("thead", {}, make("tr", {}, ...columns.map((text) => make("th", { scope: "col" }, text))));
    const parts = [
      make("h4", {}, "By iteration"),
      make("table", { class: "answers" },
        make("caption", { class: "hidden" }, "Answer, score and attention of every prediction"),
        head, make("tbody", {}, ...rows)),
      make("p", { class: "soft" }, "Attention is the share that a prediction has in the final answer."),
    ];
    if (energy) {
      parts.push(make("p", { class: "soft" },
        `Energy of the spatial memory in this box after each write: ${energy[r].join(", ")}.`));
    }
    return parts;
  }

  const bar = (share, colour) => make("span", {
    class: "meter", style: { width: `${4 * share / run.scale}rem`, background: colour }, "aria-hidden": "true",
  });

  function drawList() {
    const { image, order } = current;
    $("list-heading").textContent = `${count(image.labels.length, "box")} of this image`;
    const top = $("list").scrollTop;
    $("list").replaceChildren(...order.map((r) => {
      const kind = OUTCOMES[image.outcomes[r]];
      return make("li", {}, make("button",
        { type: "button", "data-region": r, "aria-pressed": String(r === region), onclick: () => pick(r) },
        make("span", { class: "soft" }, String(r + 1)),
        make("span", {}, change(image, r)),
        make("span", { class: kind.style }, `${kind.mark} ${kind.word}`)));
    }));
    $("list").scrollTop = top;
  }

  /** Choose a box from the list, where the focus stays. */
  function pick(r) {
    region = r;
    draw();
    const button = $("list").querySelector(`[data-region="${r}"]`), list = $("list");
    button.focus({ preventScroll: true });
    const from = button.offsetTop - list.offsetTop;
    if (from < list.scrollTop || from + button.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = from - list.clientHeight / 2;
    }
  }

  /** Show the next image, or the previous one; whether there is one. */
  function step(by) {
    if (!shown[at + by]) return false;
    show(at + by);
    return true;
  }

  function keys(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || !current) return;
    if (event.target.closest("select, input, .scroll")) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && step(by)) event.preventDefault();
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (down && event.target.closest("#list")) {
      event.preventDefault();
      const next = current.order[current.order.indexOf(region) + down];
      if (next !== undefined) pick(next);
    }
  }

  // -------------------------------------------------------------------------------------------- classes and pairs

  function listed(id, entries, row) {
    const list = $(id), more = $(`more-${id}`);
    let until = ROWS;
    const draw = () => {
      list.replaceChildren(...entries.slice(0, until).map(row));
      if (!entries.length) list.replaceChildren(make("li", {}, make("span", { class: "soft" }, "none")));
      more.hidden = until >= entries.length;
      more.textContent = `Show more (${(entries.length - until).toLocaleString("en")} left)`;
    };
    more.onclick = () => { until *= 4; draw(); };
    draw();
  }

  /** A button that shows the boxes of a choice; plain text where the page has no images. */
  const link = (asked, ...text) => images.length
    ? make("button", { type: "button", onclick: () => see(asked) }, ...text)
    : make("span", {}, ...text);

  const CLASS_ORDERS = {
    net: (a, b) => (b.gained - b.lost) - (a.gained - a.lost) || b.gained - a.gained,
    loss: (a, b) => b.lost - a.lost || a.gained - b.gained,
    points: (a, b) => Math.abs(b.gained - b.lost) / b.regions - Math.abs(a.gained - a.lost) / a.regions,
    count: (a, b) => b.regions - a.regions,
    name: () => 0,
  };

  function classes() {
    const searched = $("class-search").value.trim().toLowerCase();
    const rows = run.perClass.map(([regions, right, gained, lost], c) =>
      ({ c, name: plain(c), regions, right, gained, lost }));
    const matches = rows.filter((row) => row.regions && row.name.toLowerCase().includes(searched));
    matches.sort((a, b) => CLASS_ORDERS[$("class-order").value](a, b) || (a.name < b.name ? -1 : 1));
    const most = Math.max(1, ...rows.map((row) => Math.max(row.gained, row.lost)));
    listed("classes", matches, (row) => {
      const side = (n, style, sign) => n
        ? make("span", { class: style },
          make("i", { style: { width: `${78 * n / most}%` } }), sign + n.toLocaleString("en"))
        : make("span", {});
      const points = (n) => `${Math.round(1000 * n / row.regions) / 10}\u00a0%`;
      return make("li", {}, link({ class: String(row.c) }, row.name),
        make("span", { class: "bar" }, side(row.lost, "down", "−"), side(row.gained, "up", "+")),
        make("span", { class: "soft" },
          `${points(row.right)} → ${points(row.right + row.gained - row.lost)} of ${count(row.regions, "box")}`));
    });
  }

  function pairs() {
    const lists = [["resolved", "gained", "gain", "up"], ["made", "lost", "loss", "down"]];
    for (const [id, outcome, order, style] of lists) {
      listed(id, run.pairs[id], ([label, mistake, changed, of]) => make("li", {},
        link({ outcome, class: String(label), mistake: String(mistake), order },
          make("strong", {}, plain(label)), " taken for ", make("strong", {}, plain(mistake))),
        make("span", { class: style }, `${changed.toLocaleString("en")} of ${count(of, "box")}`)));
    }
  }

  // ----------------------------------------------------------------------------------------------------- start

  function start() {
    run.reasons = run.keys.length > 1;
    if ($("classes")) {
      classes();
      $("class-order").addEventListener("change", classes);
      $("class-search").addEventListener("input", classes);
      pairs();
    }
    if (!images.length) return;
    for (const id of ["outcome", "class", "mistake", "order"]) $(id).addEventListener("change", () => choose());
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    document.addEventListener("keydown", keys);
    $("viewer").hidden = false;
    choose();
  }

  document.addEventListener("DOMContentLoaded", start);
  return { run: (facts) => { run = facts; }, index, chunk };
})();
