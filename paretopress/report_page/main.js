// Start: read the data, draw, and on a live page ask for newer data now and then.

const REFRESH_MS = 3000;

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function freshState(data) {
  const device = data.devices[0] || null;
  const axes = data.objectives.filter((axis) => axis in data.axes);
  const others = axes.filter((axis) => axis !== "accuracy");
  return { x: others[0] || Object.keys(data.axes)[0], y: "accuracy" in data.axes ? "accuracy" : axes[0], device, limits: {}, selected: null,
    trials: true, predicted: true, range: "front", sort: null, curveKind: "channels", unit: null };
}

async function load(app, data) {
  app.data = data;
  app.bulk = await unpacked(data.packed);
  app.items = itemsOf(data);
  app.byKey = new Map([...app.items.points, ...app.items.trials].map((item) => [item.key, item]));
  Object.assign(app, readUnits(app.bulk));
  app.state ||= freshState(data);
  const { state } = app;
  if (!(state.x in data.axes) || !(state.y in data.axes)) {   // nothing was known yet
    const { x, y, device } = freshState(data);
    Object.assign(state, { x, y, device });
  }
  if (!app.byKey.has(state.selected)) {
    const first = app.items.points.find((item) => item.knee) || app.items.points.find((item) => !item.dense && !item.why_not) || app.items.points[0];
    state.selected = first ? first.key : null;
  }
  draw(app);
}

function draw(app) {
  const { data } = app;
  byId("title").textContent = data.title;
  byId("optuna").hidden = !data.optuna;
  byId("subtitle").textContent = data.finished ? data.facts.slice(0, 2).join(" · ") : "The search is under way: costs are predicted, the metric is that of the search set.";
  if (!Object.keys(data.axes).length) {
    byId("status").textContent = "No trial is finished yet.";
    for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "about";
    drawFacts(app);
    return;
  }
  for (const section of document.querySelectorAll("main > section")) section.hidden = false;
  drawSummary(app);
  drawPoints(app);
  if (!isUsed("axes")) drawAxes(app);
  if (!isUsed("limits")) drawLimits(app);
  drawScatter(app);
  drawPolicy(app);
  if (!isUsed("sensitivity")) drawSensitivity(app);
  drawHistory(app);
  drawTrust(app);
  if (!isUsed("dropped")) drawDropped(app);
  drawFacts(app);
}

// What somebody is using is not drawn anew under the hand: a refresh comes while a slider is being dragged.
const isUsed = (id) => byId(id).contains(document.activeElement);

function select(app, item, jump = false) {
  const before = app.state.selected;
  app.state.selected = item.key;
  for (const element of document.querySelectorAll("#scatter [data-key], #points tr[data-key]")) {
    const { key } = element.dataset;
    if (key !== before && key !== item.key) continue;
    element.classList.toggle("selected", key === item.key);
    if (element.classList.contains("mark")) element.setAttribute("aria-pressed", key === item.key ? "true" : "false");
  }
  drawPolicy(app);
  if (app.state.unit && !byId("sensitivity").hidden) markUnit(app);
  if (jump) showPolicy();
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const set = (name) => {
    document.documentElement.dataset.theme = name;
    byId("theme").textContent = name === "dark" ? "Light mode" : "Dark mode";
  };
  let isChosen = false;
  set(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { if (!isChosen) set(dark.matches ? "dark" : "light"); });
  byId("theme").addEventListener("click", () => {
    isChosen = true;
    set(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  });
}

// On paper everything is open.
function startPrinting() {
  addEventListener("beforeprint", () => { for (const box of document.querySelectorAll("details:not([open])")) { box.open = true; box.dataset.shut = ""; } });
  addEventListener("afterprint", () => { for (const box of document.querySelectorAll("details[data-shut]")) { box.open = false; delete box.dataset.shut; } });
}

function startResizing(app) {
  let width = document.documentElement.clientWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (document.documentElement.clientWidth === width || !app.data || !Object.keys(app.data.axes).length) return;
      width = document.documentElement.clientWidth;
      drawScatter(app);
      drawSensitivity(app);
      drawHistory(app);
      drawTrust(app);
    }, 120);
  });
}

async function refresh(app) {
  try {
    const answer = await fetch("data.json", { headers: app.tag ? { "If-None-Match": app.tag } : {}, cache: "no-store" });
    if (answer.status === 200) {
      app.tag = answer.headers.get("ETag");
      const focused = document.activeElement?.closest?.("#scatter .mark")?.dataset.key;
      await load(app, await answer.json());
      if (focused) app.marks.find((mark) => mark.dataset.key === focused)?.focus({ preventScroll: true });
    }
    byId("status").textContent = answer.ok || answer.status === 304 ? (app.data.finished ? "Live: the run is finished." : "Live: refreshed while the search runs.")
      : `The run cannot be read: ${await answer.text()}`;
  } catch {
    byId("status").textContent = "The dashboard does not answer: this is what it last said.";
  }
  setTimeout(() => refresh(app), REFRESH_MS);
}

async function start() {
  const begin = performance.now();
  const app = {};
  startTheme();
  startPrinting();
  const data = JSON.parse(byId("data").textContent);
  await load(app, data);
  startResizing(app);
  performance.measure("drawn", { start: begin });
  document.documentElement.dataset.ready = "";
  if (data.live) setTimeout(() => refresh(app), REFRESH_MS);
}

start();
