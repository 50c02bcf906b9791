// What a map shows, in words: for those who cannot see it, and for the labels of what is in it.

function numberText(value) {
  if (!Number.isFinite(value)) return "not a number";
  if (value === 0) return "0";
  return Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(2)));
}

/** The weight of a key; a patch that the model drops has none. */
const weightText = (stage, key, value) => (stage.absent.includes(key) ? "no token" : numberText(value));

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
const valuesOf = (panel, row) => (panel.head >= 0 && row.heads.length ? row.heads[panel.head] : row.mean);

/** The patch with the largest weight, null if no weight is a number. */
function mostOf(values, stage) {
  let most = null;
  for (let key = stage.prefix.length; key < values.length; key++) {
    if (Number.isFinite(values[key]) && !(values[key] <= values[most])) most = key;
  }
  return most;
}

/** The map in a sentence, for those who cannot see it. */
function sentence(panel, row) {
  const { stage, query, site } = panel;
  const values = valuesOf(panel, row);
  const most = mostOf(values, stage);
  const told = [`${share(values[query], site.signed)} on itself`];
  if (most !== null) told.push(`among patches most on ${tokenText(stage, most)} (${numberText(values[most])})`);
  stage.prefix.forEach((name, token) => {
    if (token !== query) told.push(`${share(values[token], site.signed)} on the ${name}`);
  });
  const from = query < stage.prefix.length ? `the ${tokenText(stage, query)}` : `query ${tokenText(stage, query)}`;
  return `${panel.name}, ${blockText(panel)}, ${headText(panel, row)}, ${site.title}, from ${from}: ${told.join(", ")}.`;
}

function toldText(told) {
  if (!told || !(told.prediction || told.label)) return "";
  const sure = told.probability === null ? "" : ` (${told.probability < 0.01 ? "below 1" : Math.round(100 * told.probability)} %)`;
  return `Predicted ${told.prediction || "unknown"}${sure}${told.label ? `, label ${told.label}` : ""}.`;
}
