// Maps of every block and head: a row of tiles per block, the mean of heads first; where single heads were left out,
// blocks row by row.

const TILE_PIXELS = 48; // of a map in the atlas, at least; what a page shows is scaled to its width
const GAP = 3;

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
  place(
    panel.chosen,
    (column * width) / sheet.width,
    (line * height) / sheet.height,
    (width - GAP) / sheet.width,
    (height - GAP) / sheet.height,
  );
  labelAtlas(panel);
}

/** [column, line] of a map in the atlas. */
function tileOf({ grid }, layer, head) {
  if (grid.heads.length) return [head + 1, layer];
  return [layer % grid.columns, Math.floor(layer / grid.columns)];
}

/** {layer, head} of the tile under the pointer, null if there is none. */
function tileAt({ grid, sheet, stage }, event) {
  if (!grid) return null;
  const box = sheet.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * grid.columns);
  const line = Math.floor(((event.clientY - box.top) / box.height) * grid.lines);
  const found = grid.heads.length
    ? { layer: line, head: column - 1 }
    : { layer: line * grid.columns + column, head: -1 };
  return found.layer < stage.blocks.length ? found : null;
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
