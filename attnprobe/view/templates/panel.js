// A panel: one run, one image, one map over it, and the maps around that one.

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/**
 * An empty panel. `on` has what happens when somebody chooses: on.query(panel, token), on.tile(panel, {layer, head}),
 * and on.key(event, "picture" or "atlas").
 */
function makePanel(on) {
  const element = make("article", "panel");
  const panel = { element, on, pointed: null };
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

  panel.picture.addEventListener("click", (event) => on.query(panel, patchAt(panel, event)));
  panel.picture.addEventListener("pointermove", (event) => hover(panel, (panel.pointed = patchAt(panel, event))));
  panel.picture.addEventListener("pointerleave", () => hover(panel, (panel.pointed = null)));
  panel.picture.addEventListener("keydown", (event) => on.key(event, "picture"));
  panel.atlas.addEventListener("keydown", (event) => on.key(event, "atlas"));
  panel.sheet.addEventListener("click", (event) => {
    const tile = tileAt(panel, event);
    if (tile) on.tile(panel, tile);
  });
  new ResizeObserver(() => panel.stage && labelAtlas(panel)).observe(panel.sheet);
  return panel;
}

/** The token of the patch under the pointer. */
function patchAt({ picture, stage }, event) {
  const box = picture.getBoundingClientRect();
  const at = (offset, length, n) => Math.min(n - 1, Math.max(0, Math.floor((offset / length) * n)));
  const row = at(event.clientY - box.top, box.height, stage.rows);
  return stage.prefix.length + row * stage.cols + at(event.clientX - box.left, box.width, stage.cols);
}

function hover(panel, token) {
  const values = panel.row && valuesOf(panel, panel.row);
  panel.hover.textContent =
    values && token !== null
      ? `${tokenText(panel.stage, token)}: ${weightText(panel.stage, token, values[token])}`
      : "Point at a patch to read its weight.";
}

/** Put the image under the map; without one, the map is over an empty field. */
function photograph(panel, image) {
  const { photo, picture, stage } = panel;
  if (panel.image === image) return;
  panel.image = image;
  picture.style.aspectRatio = `${stage.cols} / ${stage.rows}`;
  photo.hidden = true;
  photo.alt = "";
  photo.onload = () => {
    photo.hidden = false;
    picture.style.aspectRatio = `${photo.naturalWidth} / ${photo.naturalHeight}`;
    photo.classList.toggle("small", photo.naturalWidth < 100);
  };
  if (image.src) photo.src = image.src;
  else photo.removeAttribute("src");
}

/** Draw `panel.row`, the maps of one block from one token, over the picture. */
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
    image: panel.image.id,
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
  Object.assign(element.style, {
    left: percent(left),
    top: percent(top),
    width: percent(width),
    height: percent(height),
  });
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
  button.addEventListener("click", () => panel.on.query(panel, token));
  return button;
}

/** The map over the picture as a table. */
function numbersTable(panel) {
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
    const cells = values.subarray(start, start + stage.cols);
    line(`row ${row + 1}`, Array.from(cells, (value, col) => weightText(stage, start + col, value)));
  }
  return table;
}
