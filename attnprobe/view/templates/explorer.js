// The attention explorer: one state, one function that draws it, and events that change it.
const root = document.getElementById("explorer");
const index = JSON.parse(document.getElementById("explorer-index").textContent);
const source = index.served ? servedSource(index) : embeddedSource(index);
const control = (name) => root.querySelector(`[name=${name}]`);
const MILLISECONDS_A_BLOCK = 700;

/** What is shown. `query` is a token of the first panel's stage; a head of -1 is the mean of heads. */
const state = { image: null, run: 0, other: -1, stage: 0, site: 0, layer: 0, head: -1, query: 0, scale: "own" };
const panels = [];
let playing = null;
let turn = new AbortController(); // of the last drawing; an older one stops when it notices

const stageOf = (run, stage) => index.runs[run].stages[stage];
const mainStage = () => stageOf(state.run, state.stage);

// --- drawing -----------------------------------------------------------------------------------------------------

/** Give a panel its part of the state, in its own run's numbers. */
function aim(panel, run) {
  const main = mainStage();
  const { name, stages } = index.runs[run];
  Object.assign(panel, { run, name });
  panel.stageAt = Math.max(0, run === state.run ? state.stage : stages.findIndex((s) => s.name === main.name));
  panel.stage = stages[panel.stageAt];
  panel.siteAt = Math.min(state.site, panel.stage.sites.length - 1);
  panel.site = panel.stage.sites[panel.siteAt];
  panel.layer = layerOf(panel.stage, main.blocks[state.layer]);
  panel.head = state.head < panel.stage.heads.length ? state.head : -1;
  panel.query = nearestQuery(panel.stage, sameToken(state.query, main, panel.stage));
  panel.row = null;
}

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
    const own = ({ stage, site }, values) => scaleOf([values], stage, site.signed, state.scale === "stretched");
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
  while (panels.length < runs.length) frame.append(panels[panels.push(makePanel(ON)) - 1].element);
  while (panels.length > runs.length) panels.pop().element.remove();
  frame.dataset.panels = panels.length;
  panels.forEach((panel, i) => {
    aim(panel, runs[i]);
    const told = state.image.told[panel.run];
    panel.known = told !== null;
    panel.element.classList.toggle("unknown", !panel.known);
    panel.title.replaceChildren(make("bdi", "", panel.name));
    panel.told.textContent = panel.known ? toldText(told) : "This run has no maps of the image.";
    photograph(panel, state.image);
    panel.picture.setAttribute(
      "aria-label",
      `Image ${state.image.id}, ${panel.stage.rows} by ${panel.stage.cols} patches; arrow keys move the query`,
    );
    panel.atlas.setAttribute("aria-label", "Every block and head; arrow keys choose");
  });
  syncControls();
}

function tell(seen) {
  const words = root.querySelector(".words");
  words.classList.remove("error");
  words.setAttribute("aria-live", playing ? "off" : "polite");
  words.replaceChildren(...seen.map((panel) => make("span", "", sentence(panel, panel.row))));
  tabulate(seen);
}

/** The numbers, if somebody has opened them. */
function tabulate(seen) {
  const details = root.querySelector(".numbers");
  if (details.open) details.querySelector(".table").replaceChildren(...seen.map(numbersTable));
}

function complain(error) {
  stop();
  const words = root.querySelector(".words");
  words.classList.add("error");
  const gone = error instanceof TypeError && index.served;
  words.textContent = gone ? "The viewer no longer answers; start it again in the terminal." : error.message;
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
  const stage = mainStage();
  const numbered = (list, name) => list.map((item, i) => [i, name(item)]);
  const named = (list) => numbered(list, (item) => item.title ?? item.name);
  const sites = panels.map((panel) => panel.stage.sites).reduce((a, b) => (b.length > a.length ? b : a));
  const others = named(index.runs).filter(([run]) => run !== state.run);
  fill(control("run"), named(index.runs), state.run);
  fill(control("other"), [[-1, "nothing"], ...others], state.other);
  fill(control("stage"), named(index.runs[state.run].stages), state.stage);
  fill(control("site"), named(sites), state.site);
  fill(control("head"), [[-1, `mean of ${stage.heads.length}`], ...numbered(stage.heads, String)], state.head);
  control("layer").max = stage.blocks.length - 1;
  control("layer").value = state.layer;
  const text = `${stage.blocks[state.layer]} of ${stage.of}`;
  control("layer").setAttribute("aria-valuetext", `block ${text}`);
  root.querySelector("output").textContent = text;
  control("play").textContent = playing ? "Stop" : "Play";
  const buttons = [...root.querySelectorAll(".images button[data-place]")];
  const chosen = buttons.find((button) => Number(button.dataset.place) === state.image.place) ?? buttons[0];
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.place) === state.image.place));
    button.tabIndex = button === chosen ? 0 : -1; // one tab stop for all; arrows move among them
  }
}

/** Change the state and draw it; values out of bounds stop at them. */
function go(change) {
  Object.assign(state, change);
  if (state.other === state.run) state.other = -1;
  const within = (value, low, high) => Math.min(high, Math.max(low, value));
  state.stage = within(state.stage, 0, index.runs[state.run].stages.length - 1);
  const stage = mainStage();
  const shown = [state.run, state.other].filter((run) => run >= 0).flatMap((run) => index.runs[run].stages);
  state.site = within(state.site, 0, Math.max(...shown.map(({ sites }) => sites.length)) - 1);
  state.layer = within(state.layer, 0, stage.blocks.length - 1);
  state.head = within(state.head, -1, stage.heads.length - 1);
  state.query = nearestQuery(stage, within(state.query, 0, stage.prefix.length + stage.rows * stage.cols - 1));
  return show();
}

/** When the run or the stage changes, tokens and blocks have other numbers. */
function goTo(run, stage) {
  const from = mainStage();
  const to = stageOf(run, stage) ?? stageOf(run, 0);
  const layer = layerOf(to, from.blocks[state.layer]);
  return go({ run, stage: index.runs[run].stages.indexOf(to), layer, query: sameToken(state.query, from, to) });
}

/** Move the query by rows and columns; the tokens beside the patches are a row above them. */
function moved(rows, cols) {
  const stage = mainStage();
  const n = stage.prefix.length;
  const patch = state.query - n;
  if (patch < 0) {
    const down = n + Math.floor(stage.cols / 2);
    return go({ query: rows > 0 ? down : Math.min(n - 1, Math.max(0, state.query + rows + cols)) });
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
const MOVES_ON = {
  picture: {
    ...MOVES,
    ArrowUp: () => moved(-1, 0),
    ArrowDown: () => moved(+1, 0),
    ArrowLeft: () => moved(0, -1),
    ArrowRight: () => moved(0, +1),
  },
  atlas: {
    ...MOVES,
    ArrowUp: () => go({ layer: state.layer - 1 }),
    ArrowDown: () => go({ layer: state.layer + 1 }),
    ArrowLeft: () => go({ head: state.head - 1 }),
    ArrowRight: () => go({ head: state.head + 1 }),
  },
};

/** What happens when somebody chooses in a panel; the state counts as the first panel does. */
const ON = {
  query: (panel, token) => go({ query: sameToken(token, panel.stage, mainStage()) }),
  tile: (panel, { layer, head }) => go({ layer: layerOf(mainStage(), panel.stage.blocks[layer]), head }),
  key(event, part) {
    const moves = MOVES_ON[part];
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    if (event.key !== " ") stop();
    moves[event.key]();
  },
};

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
  root.querySelector(".images").addEventListener("keydown", moveAmongImages);
  root.querySelector(".numbers").addEventListener("toggle", () => tabulate(panels.filter((panel) => panel.row)));
  const search = root.querySelector("input[type=search]");
  search.closest("label").hidden = !index.served;
  let typing = 0;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => list(search.value, 0, false), 150);
  });
  const stage = mainStage();
  state.layer = stage.blocks.length - 1;
  if (!stage.prefix.length) state.query = Math.floor((stage.rows / 2 + 0.5) * stage.cols);
  if (index.runs.length > 1) state.other = 1;
  list("", 0, "first");
}

start();
