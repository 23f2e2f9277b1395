// Limits: a slider per objective and cost. They hide what lies beyond them, in the plot and in the table.

const STEPS = 200;

function limitAxes(app) {
  const { data, state } = app;
  const bases = ["peak_memory", "energy", "macs", "robust"];
  const wanted = [...data.objectives, ...data.budgets.map((budget) => budget.axis),
    ...Object.keys(data.axes).filter((axis) => bases.includes(baseOf(axis)))];
  return [...new Set(wanted)].filter((axis) => axis in data.axes && (!deviceOf(axis) || deviceOf(axis) === state.device));
}

function rangeOf(app, axis) {
  const values = [...app.items.points, ...app.items.trials].map((item) => judgedOf(item, axis)).filter((value) => value !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const log = wantsLog(axis, values);
  const map = (place) => {
    const share = place / STEPS;
    if (place <= 0) return low;
    if (place >= STEPS) return high;
    return log ? low * (high / low) ** share : low + (high - low) * share;
  };
  const place = (value) => {
    const share = high === low ? 0 : log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return Math.round(STEPS * Math.min(Math.max(share, 0), 1));
  };
  return { low, high, map, place, known: values.length > 1 && high > low };
}

function drawLimits(app) {
  const { data, state } = app;
  const sliders = limitAxes(app).map((axis) => sliderOf(app, axis)).filter(Boolean);
  const buttons = h("div", { class: "buttons" },
    h("button", { type: "button", on: { click: () => { state.limits = {}; drawLimits(app); applyLimits(app); } } }, "No limits"),
    data.budgets.length ? h("button", { type: "button", on: { click: () => { useBudgets(app); } } }, "Use the budgets") : null);
  const opener = app.items.trials.length ? trialOpener(app) : null;
  replace("limits", h("h3", {}, "Limits"), sliders, buttons, opener);
  byId("limits").hidden = !sliders.length && !opener;
  byId("limits").onsubmit = (event) => event.preventDefault();
}

function sliderOf(app, axis) {
  const { data, state } = app;
  const range = rangeOf(app, axis);
  if (!range.known) return null;
  const isMost = data.axes[axis] !== "max";
  const free = isMost ? STEPS : 0;
  const limit = state.limits[axis];
  const output = h("output", {});
  const input = h("input", { type: "range", min: 0, max: STEPS, step: 1, "data-axis": axis,
    "aria-label": `${axisName(data, axis)}, ${isMost ? "at most" : "at least"}` });
  const tell = () => {
    const text = Number(input.value) === free ? "any" : shown(data, axis, range.map(Number(input.value)));
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.value = limit === undefined || limit === null ? free : range.place(limit);
  tell();
  input.addEventListener("input", () => {
    const place = Number(input.value);
    if (place === free) delete state.limits[axis];
    else state.limits[axis] = range.map(place);
    tell();
    applyLimits(app);
  });
  return h("label", {}, output, `${axisName(data, axis)} ${isMost ? "≤" : "≥"}`, input);
}

function useBudgets(app) {
  app.state.limits = {};
  for (const budget of app.data.budgets) {
    if (deviceOf(budget.axis) && deviceOf(budget.axis) !== app.state.device) continue;
    const earlier = app.state.limits[budget.axis];
    const pick = budget.upper ? Math.min : Math.max;
    app.state.limits[budget.axis] = earlier === undefined ? budget.limit : pick(earlier, budget.limit);
  }
  drawLimits(app);
  applyLimits(app);
}

// Trials are too many to walk through with the keyboard: any of them opens by its number.
function trialOpener(app) {
  const input = h("input", { type: "number", min: 0, step: 1, id: "trial-number", "aria-label": "Number of a trial" });
  const open = () => {
    const item = app.byKey.get(`trial-${Number.parseInt(input.value, 10)}`);
    input.setCustomValidity(item ? "" : "no trial of this number is in the report");
    if (!input.reportValidity()) return;
    select(app, item, true);
  };
  input.addEventListener("input", () => input.setCustomValidity(""));
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); open(); } });
  return h("div", { class: "buttons" }, input, h("button", { type: "button", on: { click: open } }, "Open trial"));
}

// References stay in view whatever the limits: without them nothing says what a limit costs.
const isReference = (item) => item.kind === "point" && Boolean(item.name);

function applyLimits(app) {
  const { data, state } = app;
  const kept = new Set([...app.items.points, ...app.items.trials].filter((item) => within(data, item, state.limits)).map((item) => item.key));
  for (const element of byId("scatter").querySelectorAll("[data-key]")) {
    const item = app.byKey.get(element.dataset.key);
    element.classList.toggle("gone", !kept.has(item.key) && !isReference(item));
  }
  for (const row of byId("points").querySelectorAll("tr[data-key]")) row.hidden = !kept.has(row.dataset.key);
  const count = (items) => items.filter((item) => kept.has(item.key)).length;
  const { points, trials } = app.items;
  const front = points.filter((item) => item.feasible && !item.why_not);
  const words = points.length ? [`${count(points)} of ${points.length} verified points are within the limits, ${count(front)} of them on the front`] : [];
  if (trials.length) words.push(`${count(trials)} of ${trials.length} trials`);
  if (app.outside) words.push(`${plural(app.outside, "trial")} outside the plot`);
  byId("shown").textContent = words.length ? `${words.join("; ")}.` : "";
}
