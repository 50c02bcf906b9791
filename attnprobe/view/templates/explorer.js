// The attention explorer: one state, one function that draws it, and events that change it.
(() => {
  const root = document.getElementById("explorer");
  const index = JSON.parse(document.getElementById("explorer-index").textContent);
  const source = index.served ? servedSource(index) : embeddedSource(index);
  const control = (name) => root.querySelector(`[name=${name}]`);
  const MILLISECONDS_A_BLOCK = 700;
  const TILE_PIXELS = 48; // of a map in the atlas, at least; what a page shows is scaled to its width
  const GAP = 3;

  // Viridis at 33 even stops (between them within 2/255 of matplotlib's), and RdBu reversed, whose 11 stops it is made
  // of. Both are told apart by eyes that confuse red and green; the grey is that of a value which is no number.
  const VIRIDIS = colourTable(
    "440154 470d60 48186a 482374 472d7b 453681 424086 3f4989 3b528b 375a8d 33638d 2f6a8e 2c728e 297a8e 26818e 23898e 21908c " +
      "1f988b 1f9f88 21a685 28ae80 31b57b 3ebc74 4cc26c 5dc963 6ece58 82d34c 96d83f abdc32 c0df24 d5e21a eae51a fde725",
  );
  const RED_BLUE = colourTable("053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f");
  const MISSING = [154, 154, 154];

  /** What is shown. `query` is a token of the first panel's stage; a head of -1 is the mean of heads. */
  const state = { image: null, run: 0, other: -1, stage: 0, site: 0, layer: 0, head: -1, query: 0, scale: "own" };
  let panels = [];
  let playing = null;
  let turn = new AbortController(); // of the last drawing; an older one stops when it notices

  // --- colours -----------------------------------------------------------------------------------------------------

  function colourTable(hex) {
    const stops = hex.split(" ").map((stop) => [0, 2, 4].map((at) => parseInt(stop.slice(at, at + 2), 16)));
    return Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (stops.length - 1);
      const below = Math.min(Math.floor(at), stops.length - 2);
      return stops[below].map((value, k) => Math.round(value + (at - below) * (stops[below + 1][k] - value)));
    });
  }

  /** value -> [red, green, blue]. */
  function colourOf(value, [low, high], signed) {
    if (!Number.isFinite(value)) return MISSING;
    const at = high > low ? Math.round((255 * (value - low)) / (high - low)) : 0;
    return (signed ? RED_BLUE : VIRIDIS)[Math.min(255, Math.max(0, at))];
  }

  /** The scale that suits the patches of some maps: from 0, or around 0 where there are signs, unless it is stretched. */
  function scaleOf(maps, stage, signed) {
    let [low, high] = [Infinity, -Infinity];
    for (const values of maps) {
      for (let key = stage.prefix.length; key < values.length; key++) {
        if (!Number.isFinite(values[key])) continue;
        low = Math.min(low, values[key]);
        high = Math.max(high, values[key]);
      }
    }
    if (low > high) return [0, 0];
    if (signed) return [-Math.max(-low, high), Math.max(-low, high)];
    return [state.scale === "stretched" ? low : 0, high];
  }

  /** A square of `side` pixels per patch, from (left, top) on. */
  function paint(canvas, values, stage, scale, signed, left = 0, top = 0, side = 1) {
    const width = stage.cols * side;
    const pixels = new ImageData(width, stage.rows * side);
    for (let at = 0; at < pixels.data.length / 4; at++) {
      const [row, col] = [Math.floor(at / width / side), Math.floor((at % width) / side)];
      const colour = colourOf(values[stage.prefix.length + row * stage.cols + col], scale, signed);
      pixels.data.set(colour, 4 * at);
      pixels.data[4 * at + 3] = 255;
    }
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(pixels, left, top); // no need of a GPU
  }

  // --- words -------------------------------------------------------------------------------------------------------

  function numberText(value) {
    if (!Number.isFinite(value)) return "not a number";
    if (value === 0) return "0";
    return Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(2)));
  }

  const share = (value, signed) => (signed ? numberText(value) : `${numberText(100 * value)} %`);

  function tokenText(stage, token) {
    const patch = token - stage.prefix.length;
    if (patch < 0) return stage.prefix[token];
    return `row ${Math.floor(patch / stage.cols) + 1} column ${(patch % stage.cols) + 1}`;
  }

  function headText(panel, row) {
    const of = panel.stage.heads.length;
    if (panel.head >= 0 && row.heads.length) return `head ${panel.stage.heads[panel.head]}`;
    return of === 1 ? `head ${panel.stage.heads[0]}` : `mean of ${of} heads`;
  }

  const blockText = (panel) => `block ${panel.stage.blocks[panel.layer]} of ${panel.stage.of}`;

  /** The map in a sentence, for those who cannot see it. */
  function sentence(panel, row) {
    const { stage, query, site } = panel;
    const values = valuesOf(panel, row);
    const most = mostOf(values, stage);
    const told = [`${share(values[query], site.signed)} on itself`];
    if (most !== null) told.push(`of the patches most on ${tokenText(stage, most)} (${numberText(values[most])})`);
    stage.prefix.forEach((name, token) => {
      if (token !== query) told.push(`${share(values[token], site.signed)} on the ${name}`);
    });
    const from = query < stage.prefix.length ? `the ${tokenText(stage, query)}` : `query ${tokenText(stage, query)}`;
    return `${index.runs[panel.run].name}, ${blockText(panel)}, ${headText(panel, row)}, ${site.title}, from ${from}: ${told.join(", ")}.`;
  }

  /** The patch with the largest weight, null if no weight is a number. */
  function mostOf(values, stage) {
    let most = null;
    for (let key = stage.prefix.length; key < values.length; key++) {
      if (Number.isFinite(values[key]) && !(values[key] <= values[most])) most = key;
    }
    return most;
  }

  const valuesOf = (panel, row) => (panel.head >= 0 && row.heads.length ? row.heads[panel.head] : row.mean);

  function toldText(told) {
    if (!told || !(told.prediction || told.label)) return "";
    const sure = told.probability === null ? "" : ` (${Math.round(100 * told.probability)} %)`;
    return `Seen as ${told.prediction || "unknown"}${sure}${told.label ? `, is ${told.label}` : ""}.`;
  }

  // --- panels: one run each ----------------------------------------------------------------------------------------

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function makePanel() {
    const element = make("article", "panel");
    const panel = { element, pointed: null };
    for (const name of ["title", "told", "tokens", "picture", "hover", "legend", "atlas"]) {
      panel[name] = element.appendChild(make(name === "title" ? "h3" : "div", name));
    }
    panel.photo = panel.picture.appendChild(make("img"));
    panel.heat = panel.picture.appendChild(make("canvas", "heat"));
    panel.most = panel.picture.appendChild(make("div", "most frame"));
    panel.from = panel.picture.appendChild(make("div", "from frame"));
    panel.low = panel.legend.appendChild(make("span"));
    panel.bar = panel.legend.appendChild(make("canvas"));
    panel.high = panel.legend.appendChild(make("span"));
    panel.tokens.setAttribute("role", "group");
    panel.tokens.setAttribute("aria-label", "Tokens beside the patches");
    panel.heat.setAttribute("aria-hidden", "true");
    Object.assign(panel.bar, { width: 256, height: 1 });
    for (const part of [panel.picture, panel.atlas]) {
      part.tabIndex = 0;
      part.setAttribute("role", "application");
    }
    panel.order = panel.atlas.appendChild(make("div", "order"));
    panel.tiles = panel.atlas.appendChild(make("div", "tiles"));
    panel.sheet = panel.tiles.appendChild(make("canvas"));
    panel.labels = panel.tiles.appendChild(make("div", "labels"));
    panel.labels.setAttribute("aria-hidden", "true");
    panel.chosen = panel.tiles.appendChild(make("div", "chosen frame"));

    panel.picture.addEventListener("click", (event) => go({ query: toMain(panel, patchAt(panel, event)) }));
    panel.picture.addEventListener("pointermove", (event) => hover(panel, (panel.pointed = patchAt(panel, event))));
    panel.picture.addEventListener("pointerleave", () => hover(panel, (panel.pointed = null)));
    panel.picture.addEventListener("keydown", (event) => onKey(event, MOVES_ON_PICTURE));
    panel.atlas.addEventListener("keydown", (event) => onKey(event, MOVES_ON_ATLAS));
    panel.sheet.addEventListener("click", (event) => chooseTile(panel, event));
    new ResizeObserver(() => panel.stage && labelAtlas(panel)).observe(panel.sheet);
    return panel;
  }

  /** Give a panel its part of the state, in its own run's numbers. */
  function aim(panel, run) {
    const main = index.runs[state.run].stages[state.stage];
    const stages = index.runs[run].stages;
    panel.run = run;
    panel.stageAt = Math.max(0, run === state.run ? state.stage : stages.findIndex((s) => s.name === main.name));
    panel.stage = stages[panel.stageAt];
    panel.siteAt = Math.min(state.site, panel.stage.sites.length - 1);
    panel.site = panel.stage.sites[panel.siteAt];
    const deeper = panel.stage.blocks.findIndex((number) => number > main.blocks[state.layer]);
    panel.layer = Math.max(0, deeper < 0 ? panel.stage.blocks.length - 1 : deeper - 1);
    panel.head = state.head < panel.stage.heads.length ? state.head : -1;
    panel.query = nearestQuery(panel.stage, sameToken(state.query, main, panel.stage));
    panel.row = null;
  }

  /** The token of another stage at the same place in the picture. */
  function sameToken(token, from, to) {
    const patch = token - from.prefix.length;
    if (patch < 0) {
      const twin = to.prefix.indexOf(from.prefix[token]);
      return twin >= 0 ? twin : to.prefix.length ? 0 : Math.floor(to.rows / 2) * to.cols + Math.floor(to.cols / 2);
    }
    const row = Math.floor(((Math.floor(patch / from.cols) + 0.5) * to.rows) / from.rows);
    const col = Math.floor((((patch % from.cols) + 0.5) * to.cols) / from.cols);
    return to.prefix.length + row * to.cols + col;
  }

  /** The token itself, or the nearest one whose row was kept. */
  function nearestQuery(stage, token) {
    const distance = (other) => {
      const [a, b] = [token, other].map((t) => t - stage.prefix.length);
      if (a < 0 || b < 0) return token === other ? 0 : 1e6 + Math.abs(token - other);
      return (Math.floor(a / stage.cols) - Math.floor(b / stage.cols)) ** 2 + ((a % stage.cols) - (b % stage.cols)) ** 2;
    };
    return stage.queries.reduce((best, other) => (distance(other) < distance(best) ? other : best));
  }

  const toMain = (panel, token) => sameToken(token, panel.stage, index.runs[state.run].stages[state.stage]);

  function patchAt(panel, event) {
    const box = panel.picture.getBoundingClientRect();
    const at = (offset, length, n) => Math.min(n - 1, Math.max(0, Math.floor((offset / length) * n)));
    const row = at(event.clientY - box.top, box.height, panel.stage.rows);
    return panel.stage.prefix.length + row * panel.stage.cols + at(event.clientX - box.left, box.width, panel.stage.cols);
  }

  function hover(panel, token) {
    const values = panel.row && valuesOf(panel, panel.row);
    panel.hover.textContent = values && token !== null ? `${tokenText(panel.stage, token)}: ${numberText(values[token])}` : "Point at a patch to read its weight.";
  }

  // --- drawing -----------------------------------------------------------------------------------------------------

  async function rowOf(panel, layer, signal) {
    const query = panel.stage.queries.indexOf(panel.query);
    return source.row(state.image.place, panel.run, panel.stageAt, panel.siteAt, layer, query, signal);
  }

  /** Draw the state: first the maps that were asked for, then those of every block and head. */
  async function show() {
    turn.abort();
    const { signal } = (turn = new AbortController());
    arrange();
    const seen = panels.filter((panel) => panel.known);
    try {
      const rows = await Promise.all(seen.map((panel) => rowOf(panel, panel.layer, signal)));
      if (signal.aborted) return;
      seen.forEach((panel, i) => (panel.row = rows[i]));
      const own = (panel, values) => scaleOf([values], panel.stage, panel.site.signed);
      if (state.scale !== "shared") seen.forEach((panel) => drawMap(panel, own(panel, valuesOf(panel, panel.row))));
      tell(seen);
      const all = await Promise.all(
        seen.map((panel) => Promise.all(panel.stage.blocks.map((_, layer) => rowOf(panel, layer, signal)))),
      );
      if (signal.aborted) return;
      let shared = null;
      if (state.scale === "shared") {
        const maps = (rows) => rows.flatMap((row) => (row.heads.length ? row.heads : [row.mean]));
        const scales = seen.map((panel, i) => scaleOf(maps(all[i]), panel.stage, panel.site.signed));
        shared = [Math.min(...scales.map(([low]) => low)), Math.max(...scales.map(([, high]) => high))];
        if (shared[0] < 0) shared = [-Math.max(...shared), Math.max(...shared)];
        seen.forEach((panel) => drawMap(panel, panel.site.signed ? shared : [0, shared[1]]));
      }
      seen.forEach((panel, i) => {
        drawAtlas(panel, all[i], (values) => (shared ? panel.scale : own(panel, values)));
      });
      // How often a state was drawn to its end, for whoever waits for it (our tests).
      root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
    } catch (error) {
      if (!signal.aborted) complain(error);
    }
  }

  /** Everything that needs no map. */
  function arrange() {
    const runs = state.other >= 0 ? [state.run, state.other] : [state.run];
    const frame = root.querySelector(".panels");
    while (panels.length < runs.length) frame.append(panels[panels.push(makePanel()) - 1].element);
    while (panels.length > runs.length) panels.pop().element.remove();
    frame.dataset.panels = panels.length;
    panels.forEach((panel, i) => {
      aim(panel, runs[i]);
      const told = state.image.told[panel.run];
      panel.known = told !== null;
      panel.element.classList.toggle("unknown", !panel.known);
      panel.title.replaceChildren(make("bdi", "", index.runs[panel.run].name));
      panel.told.textContent = panel.known ? toldText(told) : "This run has no maps of the image.";
      photograph(panel);
      panel.picture.setAttribute("aria-label", `Image ${state.image.id}, ${panel.stage.rows} by ${panel.stage.cols} patches; arrow keys move the patch that looks`);
      panel.atlas.setAttribute("aria-label", "Every block and head; arrow keys choose");
    });
    syncControls();
  }

  function photograph(panel) {
    const { photo, picture, stage } = panel;
    const src = state.image.src || "data:,";
    if (photo.getAttribute("src") === src) return;
    picture.style.aspectRatio = `${stage.cols} / ${stage.rows}`;
    photo.hidden = true;
    photo.alt = "";
    photo.onload = () => {
      photo.hidden = false;
      picture.style.aspectRatio = `${photo.naturalWidth} / ${photo.naturalHeight}`;
      photo.classList.toggle("small", photo.naturalWidth < 100);
    };
    if (state.image.src) photo.src = src;
    else photo.removeAttribute("src");
  }

  function drawMap(panel, scale) {
    panel.scale = scale;
    const { stage, site, heat } = panel;
    const values = valuesOf(panel, panel.row);
    Object.assign(heat, { width: stage.cols, height: stage.rows });
    paint(heat, values, stage, scale, site.signed);
    frameOn(panel, panel.from, panel.query);
    frameOn(panel, panel.most, mostOf(values, stage) ?? -1);
    drawTokens(panel, values, scale);
    const bar = panel.bar.getContext("2d");
    for (let i = 0; i < 256; i++) {
      bar.fillStyle = `rgb(${(site.signed ? RED_BLUE : VIRIDIS)[i]})`;
      bar.fillRect(i, 0, 1, 1);
    }
    panel.low.textContent = numberText(scale[0]);
    panel.high.textContent = numberText(scale[1]);
    const where = panel.title.querySelector(".where") ?? panel.title.appendChild(make("span", "where"));
    where.textContent = `${blockText(panel)}, ${headText(panel, panel.row)}, ${site.title}`;
    hover(panel, panel.pointed);
    Object.assign(panel.element.dataset, {
      run: panel.run,
      image: state.image.id,
      block: stage.blocks[panel.layer],
      head: panel.head,
      site: site.name,
      query: panel.query,
      scale: scale.join(" "),
    });
  }

  function frameOn(panel, frame, token) {
    const patch = token - panel.stage.prefix.length;
    frame.hidden = patch < 0;
    const { rows, cols } = panel.stage;
    place(frame, (patch % cols) / cols, Math.floor(patch / cols) / rows, 1 / cols, 1 / rows);
  }

  /** Put an element at shares of its parent. */
  function place(element, left, top, width, height) {
    const percent = (value) => `${100 * value}%`;
    Object.assign(element.style, { left: percent(left), top: percent(top), width: percent(width), height: percent(height) });
  }

  function drawTokens(panel, values, scale) {
    const { stage, tokens } = panel;
    tokens.hidden = !stage.prefix.length;
    while (tokens.children.length > stage.prefix.length) tokens.lastChild.remove();
    stage.prefix.forEach((name, token) => {
      const button = tokens.children[token] ?? tokens.appendChild(makeToken(panel, token));
      button.setAttribute("aria-pressed", String(token === panel.query));
      button.disabled = !stage.queries.includes(token);
      button.firstChild.style.background = `rgb(${colourOf(values[token], scale, panel.site.signed)})`;
      button.lastChild.textContent = `${name} ${numberText(values[token])}`;
    });
  }

  function makeToken(panel, token) {
    const button = make("button");
    button.type = "button";
    button.append(make("span", "swatch"), make("bdi"));
    button.addEventListener("click", () => go({ query: toMain(panel, token) }));
    return button;
  }

  // The atlas: a row of tiles per block, the mean of heads first; where single heads were left out, blocks in a square.

  function drawAtlas(panel, rows, scaleFor) {
    const { stage, site, sheet } = panel;
    const heads = stage.heads.length > 1 && rows[0].heads.length ? stage.heads : [];
    const columns = heads.length ? heads.length + 1 : Math.min(8, stage.blocks.length);
    const lines = heads.length ? stage.blocks.length : Math.ceil(stage.blocks.length / columns);
    const side = Math.max(1, Math.floor(TILE_PIXELS / Math.max(stage.rows, stage.cols)));
    const [width, height] = [stage.cols * side + GAP, stage.rows * side + GAP];
    panel.grid = { columns, lines, heads };
    Object.assign(sheet, { width: columns * width - GAP, height: lines * height - GAP });
    rows.forEach((row, layer) => {
      [row.mean, ...(heads.length ? row.heads : [])].forEach((values, i) => {
        const [column, line] = tileOf(panel, layer, i - 1);
        paint(sheet, values, stage, scaleFor(values), site.signed, column * width, line * height, side);
      });
    });
    panel.order.textContent = heads.length ? "A row for each block, a column for each head" : "Blocks, row by row";
    panel.tiles.style.maxWidth = `calc(${columns} * 4.5rem)`;
    const [column, line] = tileOf(panel, panel.layer, panel.head);
    place(panel.chosen, (column * width) / sheet.width, (line * height) / sheet.height, (width - GAP) / sheet.width, (height - GAP) / sheet.height);
    labelAtlas(panel);
  }

  /** [column, line] of a map in the atlas. */
  function tileOf({ grid }, layer, head) {
    if (grid.heads.length) return [head + 1, layer];
    return [layer % grid.columns, Math.floor(layer / grid.columns)];
  }

  /** Numbers beside the atlas, as many as there is room for. */
  function labelAtlas(panel) {
    const { grid, labels, sheet, stage } = panel;
    labels.replaceChildren();
    if (!grid) return;
    const add = (text, left, top, className) => {
      const label = labels.appendChild(make("span", className, text));
      Object.assign(label.style, { left: `${100 * left}%`, top: `${100 * top}%` });
    };
    const step = (length, n, room) => [1, 2, 4, 8, 16, 32].find((every) => (length / n) * every >= room) ?? 64;
    const down = step(sheet.clientHeight, grid.lines, 15);
    for (let line = 0; line < grid.lines; line++) {
      const first = grid.heads.length ? line : line * grid.columns;
      if (line % down === 0) add(String(stage.blocks[first]), 0, (line + 0.5) / grid.lines, "block");
    }
    if (!grid.heads.length) return;
    const along = step(sheet.clientWidth, grid.columns, 20);
    add(sheet.clientWidth / grid.columns > 34 ? "mean" : "ø", 0.5 / grid.columns, 0, "head");
    grid.heads.forEach((number, i) => {
      if ((i + 1) % along === 0) add(String(number), (i + 1.5) / grid.columns, 0, "head");
    });
  }

  function chooseTile(panel, event) {
    const { grid, sheet, stage } = panel;
    if (!grid) return;
    const box = sheet.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * grid.columns);
    const line = Math.floor(((event.clientY - box.top) / box.height) * grid.lines);
    const layer = grid.heads.length ? line : line * grid.columns + column;
    if (layer < stage.blocks.length) go({ layer: toMainLayer(stage.blocks[layer]), head: grid.heads.length ? column - 1 : -1 });
  }

  /** The layer of the first panel with this block number, or the last before it. */
  function toMainLayer(number) {
    const { blocks } = index.runs[state.run].stages[state.stage];
    const after = blocks.findIndex((other) => other > number);
    return Math.max(0, after < 0 ? blocks.length - 1 : after - 1);
  }

  function tell(seen) {
    const words = root.querySelector(".words");
    words.classList.remove("error");
    words.setAttribute("aria-live", playing ? "off" : "polite");
    words.replaceChildren(...seen.map((panel) => make("span", "", sentence(panel, panel.row))));
    drawNumbers(seen);
  }

  function complain(error) {
    stop();
    const words = root.querySelector(".words");
    words.classList.add("error");
    const gone = error instanceof TypeError && index.served;
    words.textContent = gone ? "The viewer no longer answers; start it again in the terminal." : error.message;
  }

  /** The map as a table, when it is open. */
  function drawNumbers(seen) {
    const details = root.querySelector(".numbers");
    if (!details.open) return;
    details.querySelector(".table").replaceChildren(
      ...seen.map((panel) => {
        const { stage } = panel;
        const values = valuesOf(panel, panel.row);
        const table = make("table", "numbers");
        table.append(make("caption", "", sentence(panel, panel.row)));
        const line = (name, cells) => {
          const row = table.appendChild(make("tr"));
          row.appendChild(make("th", "", name)).scope = "row";
          for (const cell of cells) row.append(make("td", "", cell));
        };
        stage.prefix.forEach((name, token) => line(name, [numberText(values[token])]));
        const columns = table.appendChild(make("tr"));
        columns.append(make("td"));
        for (let col = 1; col <= stage.cols; col++) columns.appendChild(make("th", "", `column ${col}`)).scope = "col";
        for (let row = 0; row < stage.rows; row++) {
          const start = stage.prefix.length + row * stage.cols;
          line(`row ${row + 1}`, Array.from(values.subarray(start, start + stage.cols), numberText));
        }
        return table;
      }),
    );
  }

  // --- controls and keys -------------------------------------------------------------------------------------------

  function fill(select, options, chosen) {
    const key = JSON.stringify(options);
    if (select.dataset.options !== key) {
      select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
      select.dataset.options = key;
    }
    select.value = String(chosen);
    select.closest("label").hidden = options.length < 2;
  }

  function syncControls() {
    const run = index.runs[state.run];
    const stage = run.stages[state.stage];
    const numbered = (list, text) => list.map((item, i) => [i, text(item)]);
    const sites = panels.map((panel) => panel.stage.sites).reduce((a, b) => (b.length > a.length ? b : a));
    fill(control("run"), numbered(index.runs, (r) => r.name), state.run);
    fill(control("other"), [[-1, "nothing"], ...numbered(index.runs, (r) => r.name).filter(([i]) => i !== state.run)], state.other);
    fill(control("stage"), numbered(run.stages, (s) => s.name), state.stage);
    fill(control("site"), numbered(sites, (s) => s.title), state.site);
    fill(control("head"), [[-1, `mean of ${stage.heads.length}`], ...numbered(stage.heads, String)], state.head);
    control("layer").max = stage.blocks.length - 1;
    control("layer").value = state.layer;
    const text = `${stage.blocks[state.layer]} of ${stage.of}`;
    control("layer").setAttribute("aria-valuetext", `block ${text}`);
    root.querySelector("output").textContent = text;
    control("play").textContent = playing ? "Stop" : "Play";
    for (const button of root.querySelectorAll(".images button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.place) === state.image.place));
    }
  }

  /** Change the state and draw it; values out of bounds stop at them. */
  function go(change) {
    Object.assign(state, change);
    if (state.other === state.run) state.other = -1;
    const within = (value, low, high) => Math.min(high, Math.max(low, value));
    const { stages } = index.runs[state.run];
    state.stage = within(state.stage, 0, stages.length - 1);
    const stage = stages[state.stage];
    const most = Math.max(...[state.run, state.other].filter((run) => run >= 0).flatMap((run) => index.runs[run].stages.map((s) => s.sites.length)));
    state.site = within(state.site, 0, most - 1);
    state.layer = within(state.layer, 0, stage.blocks.length - 1);
    state.head = within(state.head, -1, stage.heads.length - 1);
    state.query = nearestQuery(stage, within(state.query, 0, stage.prefix.length + stage.rows * stage.cols - 1));
    return show();
  }

  /** When the run or the stage changes, tokens and blocks have other numbers. */
  function goTo(run, stageAt) {
    const from = index.runs[state.run].stages[state.stage];
    const to = index.runs[run].stages[stageAt] ?? index.runs[run].stages[0];
    const number = from.blocks[state.layer];
    const layer = to.blocks.findLastIndex((other) => other <= number);
    go({ run, stage: index.runs[run].stages.indexOf(to), query: sameToken(state.query, from, to), layer });
  }

  function moved(rows, cols) {
    const stage = index.runs[state.run].stages[state.stage];
    const n = stage.prefix.length;
    const patch = state.query - n;
    if (patch < 0) {
      // From token to token; after the last one the patches begin.
      return go({ query: rows > 0 ? n + Math.floor(stage.cols / 2) : Math.min(n - 1, Math.max(0, state.query + rows + cols)) });
    }
    const [row, col] = [Math.floor(patch / stage.cols) + rows, (patch % stage.cols) + cols];
    if (row < 0) return go({ query: n ? n - 1 : state.query });
    if (row >= stage.rows || col < 0 || col >= stage.cols) return undefined;
    return go({ query: n + row * stage.cols + col });
  }

  const MOVES = {
    "+": () => go({ layer: state.layer + 1 }),
    "=": () => go({ layer: state.layer + 1 }), // "+" without shift
    "-": () => go({ layer: state.layer - 1 }),
    PageUp: () => go({ layer: state.layer + 1 }),
    PageDown: () => go({ layer: state.layer - 1 }),
    Home: () => go({ layer: 0 }),
    End: () => go({ layer: Infinity }),
    "[": () => go({ head: state.head - 1 }),
    "]": () => go({ head: state.head + 1 }),
    n: () => turnTo(+1),
    p: () => turnTo(-1),
    s: () => go({ site: (state.site + 1) % control("site").options.length }),
    " ": () => (playing ? stop() : play()),
  };
  const MOVES_ON_PICTURE = {
    ...MOVES,
    ArrowUp: () => moved(-1, 0),
    ArrowDown: () => moved(+1, 0),
    ArrowLeft: () => moved(0, -1),
    ArrowRight: () => moved(0, +1),
  };
  const MOVES_ON_ATLAS = {
    ...MOVES,
    ArrowUp: () => go({ layer: state.layer - 1 }),
    ArrowDown: () => go({ layer: state.layer + 1 }),
    ArrowLeft: () => go({ head: state.head - 1 }),
    ArrowRight: () => go({ head: state.head + 1 }),
  };

  function onKey(event, moves) {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    if (event.key !== " ") stop();
    moves[event.key]();
  }

  async function play() {
    const mine = (playing = {});
    const last = Number(control("layer").max);
    await go({ layer: state.layer === last ? 0 : state.layer });
    while (playing === mine && state.layer < last) {
      await new Promise((resume) => setTimeout(resume, MILLISECONDS_A_BLOCK));
      if (playing === mine) await go({ layer: state.layer + 1 });
    }
    if (playing === mine) stop();
  }

  function stop() {
    if (!playing) return;
    playing = null;
    syncControls();
    root.querySelector(".words").setAttribute("aria-live", "polite");
  }

  // --- images ------------------------------------------------------------------------------------------------------

  let listed = { total: 0, images: [] };

  /** List the images that match; take the first if asked to. */
  async function list(words, first, take) {
    try {
      listed = await source.images(words, first);
    } catch (error) {
      complain(error);
      return;
    }
    const { total, images } = listed;
    const group = root.querySelector(".images");
    group.replaceChildren(
      ...images.map((image) => {
        const button = make("button");
        button.type = "button";
        button.dataset.place = image.place;
        button.title = [image.id, ...image.told.map(toldText)].filter(Boolean).join("\n");
        const src = image.src;
        if (src && !index.served) button.append(Object.assign(make("img"), { src, alt: "" }));
        button.append(make("bdi", "", image.id));
        button.addEventListener("click", () => go({ image }));
        return button;
      }),
    );
    if (index.served) {
      const around = (step, text) => {
        const button = make("button", "step", text);
        button.type = "button";
        button.disabled = step < 0 ? first === 0 : first + images.length >= total;
        button.addEventListener("click", () => list(words, Math.max(0, first + step * index.page), true));
        return button;
      };
      const where = total ? `${first + 1}–${first + images.length} of ${total}` : "no image matches";
      group.prepend(around(-1, "Previous"));
      group.append(around(+1, "Next"), make("span", "count", where));
    }
    Object.assign(listed, { words, first });
    if (take && images.length) await go({ image: images[take === "last" ? images.length - 1 : 0] });
    else if (state.image) syncControls();
  }

  /** The next or the previous image, across pages of the list. */
  async function turnTo(step) {
    const at = listed.images.findIndex((image) => image.place === state.image.place);
    const next = listed.images[at + step];
    if (next) return go({ image: next });
    const first = listed.first + step * index.page;
    if (!index.served || first < 0 || first >= listed.total) return undefined;
    return list(listed.words, first, step < 0 ? "last" : "first");
  }

  // --- start -------------------------------------------------------------------------------------------------------

  function start() {
    const notes = root.querySelector(".notes");
    if (!index.served && typeof DecompressionStream === "undefined") {
      index.notes = ["The explorer needs a browser of 2023 or later; the figures of this page do not."];
      for (const part of root.querySelectorAll(".settings, .depth, .numbers, .images")) part.remove();
    }
    notes.replaceChildren(...index.notes.map((note) => make("li", "", note)));
    root.hidden = false;
    document.body.classList.add("explores");
    if (!control("run")) return;

    const number = (event) => Number(event.target.value);
    control("run").addEventListener("change", (event) => goTo(number(event), state.stage));
    control("stage").addEventListener("change", (event) => goTo(state.run, number(event)));
    for (const name of ["other", "site", "head", "layer"]) {
      control(name).addEventListener("input", (event) => {
        stop();
        go({ [name]: number(event) });
      });
    }
    control("scale").addEventListener("input", (event) => go({ scale: event.target.value }));
    control("strength").addEventListener("input", (event) => root.style.setProperty("--strength", number(event) / 100));
    control("play").addEventListener("click", () => (playing ? stop() : play()));
    root.querySelector(".numbers").addEventListener("toggle", () => drawNumbers(panels.filter((panel) => panel.row)));
    const search = root.querySelector("input[type=search]");
    search.closest("label").hidden = !index.served;
    let typing = 0;
    search.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => list(search.value, 0, false), 150);
    });
    const stage = index.runs[0].stages[0];
    state.layer = stage.blocks.length - 1;
    if (!stage.prefix.length) state.query = Math.floor((stage.rows / 2 + 0.5) * stage.cols);
    if (index.runs.length > 1) state.other = 1;
    list("", 0, "first");
  }

  start();
})();
