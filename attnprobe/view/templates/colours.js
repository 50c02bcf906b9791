// value -> colour: viridis, and red and blue around 0 where a map has negative weights, as in a report's figures.

// Viridis at 33 even stops (between them within 2/255 of matplotlib's), and RdBu reversed, whose 11 stops it is made
// of. Both are told apart by eyes that confuse red and green; the grey is that of a value which is no number.
const VIRIDIS = colourTable(
  "440154 470d60 48186a 482374 472d7b 453681 424086 3f4989 3b528b 375a8d 33638d 2f6a8e 2c728e 297a8e 26818e 23898e 21908c " +
    "1f988b 1f9f88 21a685 28ae80 31b57b 3ebc74 4cc26c 5dc963 6ece58 82d34c 96d83f abdc32 c0df24 d5e21a eae51a fde725",
);
const RED_BLUE = colourTable("053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f");
const MISSING = [154, 154, 154];

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
function scaleOf(maps, stage, signed, stretched = false) {
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
  return [stretched ? low : 0, high];
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
