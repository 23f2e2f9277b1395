// The Pareto explorer: any two axes, verified points with error bars, trials, budgets and references.

const PLOT = { left: 64, top: 34, right: 18, bottom: 48 };

function drawAxes(app) {
  const { data, state } = app;
  const visible = Object.keys(data.axes).filter((axis) => !deviceOf(axis) || deviceOf(axis) === state.device);
  const options = visible.map((axis) => [axis, axisName(data, axis)]);
  const check = (name, label) => h("label", {}, h("input", { type: "checkbox", checked: state[name], on: {
    change: (event) => { state[name] = event.target.checked; drawScatter(app); },
  } }), label);
  const axisBox = (label, key) => selectBox(label, options, state[key], (axis) => { state[key] = axis; drawScatter(app); });
  replace("axes",
    axisBox("Horizontal", "x"), axisBox("Vertical", "y"),
    data.devices.length > 1 ? selectBox("Device", data.devices.map((id) => [id, id]), state.device, (id) => chooseDevice(app, id)) : null,
    app.items.points.length ? selectBox("Range", [["front", "verified points"], ["all", "everything"]], state.range,
      (range) => { state.range = range; drawScatter(app); }) : null,
    app.items.trials.length ? check("trials", "trials") : null,
    app.items.points.length ? check("predicted", "predictions") : null);
}

function chooseDevice(app, device) {
  const { data, state } = app;
  for (const key of ["x", "y"]) {
    const twin = Object.keys(data.axes).find((axis) => baseOf(axis) === baseOf(state[key]) && deviceOf(axis) === device)
      || Object.keys(data.axes).find((axis) => ["latency", "relative"].includes(baseOf(axis)) && deviceOf(axis) === device);
    if (deviceOf(state[key]) && twin) state[key] = twin;
  }
  for (const axis of Object.keys(state.limits)) if (deviceOf(axis) && deviceOf(axis) !== device) delete state.limits[axis];
  state.device = device;
  drawAxes(app);
  drawLimits(app);
  drawScatter(app);
}

const isKnown = (item, axes) => valueOf(item, axes.x) !== null && valueOf(item, axes.y) !== null;

// What an axis has to hold: of points their intervals too, and those of their predictions where these are drawn.
function extent(items, axis, withPredictions) {
  return items.flatMap((item) => {
    const figures = item.kind === "point" ? [figureOf(item, axis), withPredictions ? item.predicted[axis] : null] : [figureOf(item, axis)];
    return figures.flatMap((figure) => figure || []).filter((value) => value !== null);
  });
}

function drawScatter(app) {
  const { data, state } = app;
  const width = roomOf("scatter");
  const height = Math.round(Math.min(460, Math.max(300, width * 0.58)));
  const box = { left: PLOT.left, top: PLOT.top, width: width - PLOT.left - PLOT.right, height: height - PLOT.top - PLOT.bottom };
  const points = app.items.points.filter((item) => isKnown(item, state));
  const trials = state.trials ? app.items.trials.filter((item) => isKnown(item, state)) : [];
  const framed = points.length && state.range === "front" ? points : [...points, ...trials];
  const limits = (axis) => data.budgets.filter((budget) => budget.axis === axis).map((budget) => budget.limit);
  const scale = (axis, length) => {
    const values = [...extent(framed, axis, state.predicted), ...limits(axis)];
    return scaleOf(values, length, { log: wantsLog(axis, values) });
  };
  const [x, y] = [scale(state.x, box.width), scale(state.y, box.height)];
  const at = { x: (value) => round(box.left + x.at(value)), y: (value) => round(box.top + box.height - y.at(value)) };
  const inside = (item) => {
    const [px, py] = [at.x(valueOf(item, state.x)), at.y(valueOf(item, state.y))];
    return px >= box.left - 1 && px <= box.left + box.width + 1 && py >= box.top - 1 && py <= box.top + box.height + 1;
  };
  const dots = trials.filter(inside);
  const label = `${axisName(data, state.y)} against ${axisName(data, state.x)}: ${plural(points.length, "verified point")}, ${plural(trials.length, "trial")}`;
  const marks = [...points].sort((a, b) => valueOf(a, state.x) - valueOf(b, state.x) || a.id - b.id);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label },
    frame(box, x, y, tickTexts(data, state.x, x.ticks), tickTexts(data, state.y, y.ticks),
      axisName(data, state.x), axisName(data, state.y)),
    budgetLines(data, state, box, at), referenceLines(points, state, box, at), stairs(data, points, state, at),
    s("g", { "aria-hidden": "true" }, dots.map((item) => dotOf(app, item, at))),
    state.predicted ? s("g", { "aria-hidden": "true" }, points.map((item) => predictionOf(item, state, at))) : null,
    marks.map((item) => markOf(app, item, at)));
  listen(app, svg);
  replace("scatter", svg);
  replace("legend", legendOf(app));
  app.outside = trials.length - dots.length;
  app.marks = [...svg.querySelectorAll(".mark")];
  if (app.marks.length) (app.marks.find((mark) => mark.dataset.key === state.selected) || app.marks[0]).setAttribute("tabindex", "0");
  applyLimits(app);
}

const round = (value) => Math.round(value * 10) / 10;

function dotOf(app, item, at) {
  const { x, y, selected } = app.state;
  const kind = `dot${item.feasible ? "" : " infeasible"}${item.key === selected ? " selected" : ""}`;
  return s("circle", { class: kind, "data-key": item.key, cx: at.x(valueOf(item, x)), cy: at.y(valueOf(item, y)), r: 2.8 });
}

function budgetLines(data, state, box, at) {
  const { left, top, width, height } = box;
  return data.budgets.filter((budget) => budget.axis === state.x || budget.axis === state.y).flatMap((budget) => {
    if (budget.axis === state.x) {
      const px = at.x(budget.limit);
      const [from, to] = budget.upper ? [px, left + width] : [left, px];
      return [s("rect", { class: "beyond", x: from, y: top, width: Math.max(0, to - from), height }),
        s("path", { class: "budget", d: `M${px} ${top}V${top + height}` }),
        s("text", { class: "budget-text", x: px + (budget.upper ? -6 : 6), y: top + 12, "text-anchor": budget.upper ? "end" : "start" }, `budget ${budget.text}`)];
    }
    const py = at.y(budget.limit);
    const [from, to] = budget.upper ? [top, py] : [py, top + height];
    return [s("rect", { class: "beyond", x: left, y: from, width, height: Math.max(0, to - from) }),
      s("path", { class: "budget", d: `M${left} ${py}H${left + width}` }),
      s("text", { class: "budget-text", x: left + width - 6, y: py - 6, "text-anchor": "end" }, `budget ${budget.text}`)];
  });
}

function referenceLines(points, state, box, at) {
  const dense = points.find((item) => item.dense);
  if (!dense) return null;
  const [px, py] = [at.x(valueOf(dense, state.x)), at.y(valueOf(dense, state.y))];
  return s("path", { class: "reference", d: `M${box.left} ${py}H${box.left + box.width}M${px} ${box.top}V${box.top + box.height}` });
}

// The front of the two axes shown, among feasible points: steps, because nothing between two points was verified.
function stairs(data, points, state, at) {
  const sign = (axis) => (data.axes[axis] === "max" ? -1 : 1);
  const cost = (item) => [sign(state.x) * valueOf(item, state.x), sign(state.y) * valueOf(item, state.y)];
  const sorted = points.filter((item) => item.feasible).map((item) => ({ item, cost: cost(item) }))
    .sort((a, b) => a.cost[0] - b.cost[0] || a.cost[1] - b.cost[1]);
  let best = Infinity;
  const front = sorted.filter(({ cost: [, second] }) => { const better = second < best; best = Math.min(best, second); return better; });
  if (front.length < 2) return null;
  const d = front.map(({ item }, index) => {
    const [px, py] = [at.x(valueOf(item, state.x)), at.y(valueOf(item, state.y))];
    return index ? `H${px}V${py}` : `M${px} ${py}`;
  }).join("");
  return s("path", { class: "step", d });
}

function listen(app, svg) {
  const itemAt = (event) => app.byKey.get(event.target.closest("[data-key]")?.dataset.key);
  const show = (event) => { const item = itemAt(event); if (item) tip.show(event, tipOf(app, item)); };
  svg.addEventListener("pointerover", show);
  svg.addEventListener("pointerout", tip.hide);
  svg.addEventListener("focusin", show);
  svg.addEventListener("focusout", tip.hide);
  svg.addEventListener("click", (event) => { const item = itemAt(event); if (item) select(app, item); });
  svg.addEventListener("keydown", (event) => moveFocus(app, event, itemAt(event)));
}

function moveFocus(app, event, item) {
  const marks = app.marks.filter((mark) => !mark.classList.contains("gone"));
  const place = marks.indexOf(event.target.closest(".mark"));
  const steps = { ArrowRight: place + 1, ArrowUp: place + 1, ArrowLeft: place - 1, ArrowDown: place - 1, Home: 0, End: marks.length - 1 };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    if (item) select(app, item, true);
  } else if (event.key === "Escape") {
    tip.hide();
  } else if (event.key in steps && marks.length) {
    event.preventDefault();
    const next = marks[Math.min(Math.max(steps[event.key], 0), marks.length - 1)];
    for (const mark of app.marks) mark.setAttribute("tabindex", mark === next ? "0" : "-1");
    next.focus();
  }
}

function tipOf(app, item) {
  const { data } = app;
  const rows = mainAxes(data, app.state.device).filter((axis) => figureOf(item, axis)).map((axis) => {
    const [measured, predicted] = [item.measured[axis], item.predicted[axis]];
    const word = axis === "accuracy" ? "searched" : "predicted";
    return h("tr", {}, h("td", {}, axisName(data, axis)), h("td", { class: "number" }, measured ? shown(data, axis, measured[0]) : ""),
      h("td", {}, predicted ? `${shown(data, axis, predicted[0])} ${word}` : ""));
  });
  return [h("p", {}, titleOf(item)), h("table", {}, h("tbody", {}, rows)), h("div", {}, statusOf(item))];
}
