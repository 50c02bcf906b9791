// Where is the same place in a run that cuts the picture, or counts its blocks, in another way?

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

/** The layer with this block number, or the last one before it. */
function layerOf(stage, number) {
  return Math.max(
    0,
    stage.blocks.findLastIndex((other) => other <= number),
  );
}
