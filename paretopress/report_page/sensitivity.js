// Sensitivity curves: the loss of every choice alone, one line per unit and family, all on the same axes.

const CURVE_TITLES = {
  channels: "share of the channels removed", rank: "share of the full rank removed",
  sparsity: "share of the weights removed", weights: "bits of a weight",
};
const SMALLEST = 1e-9;
const MOST_DECADES = 8;

const kindOf = (name) => name.slice(name.lastIndexOf("/") + 1);
const subjectOf = (name) => name.slice(0, name.lastIndexOf("/"));

function curvesOf(unit) {
  const families = new Map();
  for (const option of unit.options) {
    if (option.loss === null || option.amount === null) continue;
    if (!families.has(option.family)) families.set(option.family, []);
    families.get(option.family).push(option);
  }
  const order = unit.axis === "bits" ? (a, b) => b.amount - a.amount : (a, b) => a.amount - b.amount;
  return [...families.values()].map((options) => options.sort(order));
}

function drawSensitivity(app) {
  const kinds = KINDS.filter((kind) => [...app.units.keys()].some((name) => kindOf(name) === kind && curvesOf(app.units.get(name)).length));
  byId("sensitivity").hidden = !kinds.length;
  if (!kinds.length) return;
  if (!kinds.includes(app.state.curveKind)) app.state.curveKind = kinds[0];
  const units = [...app.units.values()].filter((unit) => kindOf(unit.name) === app.state.curveKind && curvesOf(unit).length);
  if (!units.some((unit) => unit.name === app.state.unit)) app.state.unit = units[0].name;
  byId("sensitivity-about").textContent = `What each choice alone loses, measured before the search; ${app.data.loss || "divergence from the dense model's outputs"}. Smaller is better.`;
  replace("sensitivity-controls",
    selectBox("Choices", kinds.map((kind) => [kind, kind]), app.state.curveKind, (kind) => { app.state.curveKind = kind; app.state.unit = null; drawSensitivity(app); }),
    selectBox("Unit", units.map((unit) => [unit.name, subjectOf(unit.name)]), app.state.unit, (name) => showUnit(app, name)));
  drawCurves(app, units);
}

function drawCurves(app, units) {
  const width = roomOf("curves", 300, 1240);
  const height = 300;
  const box = { left: 64, top: 34, width: width - 82, height: height - 82 };
  const isBits = units[0].axis === "bits";
  const options = units.flatMap((unit) => curvesOf(unit).flat());
  const losses = options.map((option) => option.loss).filter((loss) => loss > 0);
  const top = Math.max(...losses, 10 * SMALLEST);
  const bottom = Math.max(Math.min(...losses, top), top / 10 ** MOST_DECADES);
  const y = scaleOf([bottom, top], box.height, { log: true });
  const x = isBits ? bitsScale(options, box.width) : scaleOf([], box.width, { from: 0, to: 1.02 });
  const at = (option) => [round(box.left + x.at(option.amount)), round(box.top + box.height - y.at(Math.max(option.loss, bottom)))];
  const path = (curve) => curve.map((option, index) => `${index ? "L" : "M"}${at(option).join(" ")}`).join("");
  const chosen = app.state.unit;
  const lines = units.filter((unit) => unit.name !== chosen).flatMap((unit) => curvesOf(unit).map((curve) =>
    s("path", { class: "curve", "data-unit": unit.name, d: curve.length > 1 ? path(curve) : `${path(curve)}h3` })));
  const svg = picture(width, height, `Losses of ${plural(units.length, "unit")}; ${app.state.unit} is marked`,
    frame(box, x, y, (value) => (isBits ? String(value) : percent(value)), (value) => digits(value, 1), CURVE_TITLES[app.state.curveKind], "loss"),
    s("g", {}, lines), s("g", { id: "curve-on" }));
  svg.addEventListener("click", (event) => { const name = event.target.dataset.unit; if (name) showUnit(app, name); });
  svg.addEventListener("pointerover", (event) => { if (event.target.dataset.unit) tip.show(event, h("p", {}, subjectOf(event.target.dataset.unit))); });
  svg.addEventListener("pointerout", tip.hide);
  replace("curves", svg);
  app.curve = { at, path };
  markUnit(app);
}

// Bits stand by their logarithm, fewer to the right: stronger choices are always on the right.
function bitsScale(options, length) {
  const bits = [...new Set(options.map((option) => option.amount))].sort((a, b) => b - a);
  const [most, least] = [Math.log2(bits[0]) + 0.4, Math.log2(bits[bits.length - 1]) - 0.4];
  return { ticks: bits, length, at: (value) => length * (most - Math.log2(value)) / (most - least) };
}

function markUnit(app) {
  const unit = app.units.get(app.state.unit);
  const item = app.byKey.get(app.state.selected);
  const taken = item ? choicesOf(app, item).get(unit.name) : null;
  const curves = curvesOf(unit);
  const layer = byId("curve-on");
  replace(layer, curves.flatMap((curve) => [s("path", { class: "curve on", d: app.curve.path(curve) }), ...curve.map((option) => {
    const [cx, cy] = app.curve.at(option);
    return s("circle", { class: `curve-point${option.estimated ? " estimated" : ""}${option === taken ? " taken" : ""}`, cx, cy, r: option === taken ? 6 : 4 });
  })]));
  for (const select of byId("sensitivity-controls").querySelectorAll("select")) if ([...select.options].some((option) => option.value === unit.name)) select.value = unit.name;
  const rows = unit.options.map((option) => h("tr", {}, h("td", {}, option.words), h("td", { class: "number" }, option.loss === null ? "cannot be measured" : digits(option.loss, 3)),
    h("td", {}, [option.estimated ? "estimated from its neighbours" : null, option === taken ? `taken by ${titleOf(item)}` : null].filter(Boolean).join(", "))));
  replace("curve-values", h("table", {}, h("caption", { class: "quiet" }, unit.name),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "choice"), h("th", { scope: "col", class: "number" }, "loss alone"), h("th", { scope: "col" }, ""))), h("tbody", {}, rows)));
}

function showUnit(app, name, jump = false) {
  const isElsewhere = kindOf(name) !== app.state.curveKind;
  app.state.unit = name;
  if (isElsewhere) { app.state.curveKind = kindOf(name); drawSensitivity(app); } else markUnit(app);
  if (jump) { byId("sensitivity").scrollIntoView({ block: "start" }); byId("sensitivity-controls").querySelector("select").focus(); }
}
