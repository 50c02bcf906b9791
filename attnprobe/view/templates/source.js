"use strict";
// Where do maps come from: from bytes in this page, or from the viewer that served it? Both answer the same questions:
//
//   images(words, first)                                -> {total, images: [{place, id, src, told}]}
//   row(image, run, stage, site, layer, query, signal)  -> {mean, heads}
//
// `told` has what each run said of the image, or null. `mean` is a Float32Array over keys, `heads` a list of them, empty
// where single heads were left out. Runs, stages, sites and layers are positions in the index, a query is one in its
// stage's list of queries.

/** Maps packed into the page by `embedded.py`, a byte per weight. */
function embeddedSource(index) {
  const open = new Map();

  const steps = (levels, code) => Array.from({ length: 256 }, (_, byte) => code(byte, levels));
  const unsigned = steps(254, (byte, levels) => (byte === 255 ? NaN : (byte / levels) ** 2));
  const signed = steps(127, (byte, levels) => {
    const code = byte < 128 ? byte : byte - 256;
    return code === -128 ? NaN : Math.sign(code) * (code / levels) ** 2;
  });

  async function unpacked(name) {
    const packed = Uint8Array.from(atob(document.getElementById(`maps-${name}`).textContent), (c) => c.charCodeAt(0));
    const bytes = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(bytes).arrayBuffer());
  }

  /** (layer, head or null for the mean, query) -> Float32Array over keys, or null if it was left out. */
  function reader(bytes, stage, isSigned) {
    const layers = stage.blocks.length;
    const queries = stage.queries.length;
    const keys = stage.prefix.length + stage.rows * stage.cols;
    const single = index.everyHead ? queries : stage.queries.filter((token) => token < stage.prefix.length).length;
    const rowsOfHeads = layers * stage.heads.length * single;
    const rows = rowsOfHeads + (index.everyHead ? 0 : layers * queries);
    // Of each row two, of the tokens beside and of the patches: bfloat16, the upper half of a float32.
    const largest = new Float32Array(
      new Uint32Array(2 * rows).map((_, i) => (bytes[2 * i] | (bytes[2 * i + 1] << 8)) << 16).buffer,
    );
    const table = isSigned ? signed : unsigned;
    return (layer, head, query) => {
      if (head === null ? index.everyHead : query >= single) return null;
      const row =
        head === null ? rowsOfHeads + layer * queries + query : (layer * stage.heads.length + head) * single + query;
      const start = 4 * rows + row * keys;
      const scaleOfKey = (key) => largest[2 * row + (key < stage.prefix.length ? 0 : 1)];
      return Float32Array.from(bytes.subarray(start, start + keys), (byte, key) => table[byte] * scaleOfKey(key));
    };
  }

  return {
    async images() {
      return { total: index.images.length, images: index.images.map((image, place) => ({ ...image, place })) };
    },
    async row(image, run, stage, site, layer, query) {
      const name = [image, run, stage, site].join("-");
      const shape = index.runs[run].stages[stage];
      if (!open.has(name)) {
        open.set(
          name,
          unpacked(name).then((bytes) => reader(bytes, shape, shape.sites[site].signed)),
        );
      }
      const read = await open.get(name);
      const heads = shape.heads.map((_, head) => read(layer, head, query)).filter(Boolean);
      return { heads, mean: read(layer, null, query) ?? meanOf(heads) };
    },
  };
}

/** Maps asked for from `server.py`, exact. */
function servedSource(index) {
  const kept = new Map(); // the newest rows, of some 10 kB each
  const MOST_KEPT = 2000;

  async function answer(what, query, signal) {
    const reply = await fetch(`${what}?${new URLSearchParams(query)}`, { signal });
    if (!reply.ok) throw new Error(await reply.text());
    return reply;
  }

  return {
    async images(words, first) {
      return (await answer("images", { words, first })).json();
    },
    async row(image, run, stage, site, layer, query, signal) {
      const place = { image, run, stage, site, layer, query };
      const name = Object.values(place).join("-");
      if (!kept.has(name)) {
        const values = new Float32Array(await (await answer("row", place, signal)).arrayBuffer());
        const heads = index.runs[run].stages[stage].heads;
        const keys = values.length / heads.length;
        const rows = heads.map((_, head) => values.subarray(head * keys, (head + 1) * keys));
        kept.set(name, { heads: rows, mean: meanOf(rows) });
        if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
      }
      return kept.get(name);
    },
  };
}

function meanOf(rows) {
  return rows[0].map((_, key) => rows.reduce((sum, row) => sum + row[key], 0) / rows.length);
}
