// Marks of the scatter plot. The shape says what an item is, the colour repeats it.

const SHAPES = {
  circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  square: (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  triangle: (r) => `M0 ${-1.25 * r}L${1.2 * r} ${0.85 * r}H${-1.2 * r}z`,
  diamond: (r) => `M0 ${-1.4 * r}L${1.4 * r} 0L0 ${1.4 * r}L${-1.4 * r} 0z`,
  cross: (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
};
const LEGEND = [
  ["front", "circle", "on the front"],
  ["knee", "circle", "knee"],
  ["off", "circle", "verified, off the front"],
  ["infeasible", "cross", "breaks a budget"],
  ["dense", "diamond", "dense model"],
  ["hand", "square", "uniform int8"],
  ["hand", "triangle", "uniform half width"],
];

function shapeOf(item) {
  if (item.dense) return "diamond";
  if (item.name) return item.name.includes("width") ? "triangle" : "square";
  return item.feasible ? "circle" : "cross";
}

function classesOf(app, item) {
  const classes = ["mark"];
  if (item.dense) classes.push("dense");
  else if (item.name) classes.push("hand");
  else if (!item.feasible) classes.push("infeasible");
  else if (item.why_not) classes.push("off");
  const { x, y } = app.state;
  if (!isMeasured(item, x) || !isMeasured(item, y)) classes.push("guess");
  if (item.key === app.state.selected) classes.push("selected");
  return classes.join(" ");
}

// Error bars of a figure on each axis; `at` maps values to places.
function bars(item, axes, at, source) {
  const [fx, fy] = [source[axes.x], source[axes.y]];
  if (!fx || !fy) return [];
  const [px, py] = [at.x(fx[0]), at.y(fy[0])];
  const found = [];
  if (fx[1] !== null && fx[2] !== null) found.push(`M${at.x(fx[1])} ${py}H${at.x(fx[2])}m0 -3v6M${at.x(fx[1])} ${py - 3}v6`);
  if (fy[1] !== null && fy[2] !== null) found.push(`M${px} ${at.y(fy[1])}V${at.y(fy[2])}m-3 0h6M${px - 3} ${at.y(fy[1])}h6`);
  return found;
}

function figuresOf(item, axes) {
  return { [axes.x]: figureOf(item, axes.x), [axes.y]: figureOf(item, axes.y) };
}

function markOf(app, item, at) {
  const axes = app.state;
  const [px, py] = [at.x(valueOf(item, axes.x)), at.y(valueOf(item, axes.y))];
  const shape = shapeOf(item);
  const move = `translate(${px} ${py})`;
  return s("g", {
    class: classesOf(app, item), "data-key": item.key, tabindex: -1, role: "button",
    "aria-label": spoken(app.data, item), "aria-pressed": item.key === app.state.selected ? "true" : "false",
  },
  bars(item, axes, at, figuresOf(item, axes)).map((d) => s("path", { class: "bar", d })),
  s("path", { class: "chosen", transform: move, d: SHAPES.circle(10.5) }),
  item.knee ? s("path", { class: "ring", transform: move, d: SHAPES.circle(8.5) }) : null,
  s("path", { class: "shape", transform: move, d: SHAPES[shape](shape === "cross" ? 4.5 : 5) }));
}

// Where the same policy was predicted to be: a hollow mark with its own interval, joined to the measured one.
function predictionOf(item, axes, at) {
  const [fx, fy] = [item.predicted[axes.x], item.predicted[axes.y]];
  const measured = isMeasured(item, axes.x) || isMeasured(item, axes.y);
  if (!fx || !fy || !measured) return null;
  const [px, py] = [at.x(fx[0]), at.y(fy[0])];
  const [mx, my] = [at.x(valueOf(item, axes.x)), at.y(valueOf(item, axes.y))];
  return s("g", { "data-key": item.key, class: "forecast" },
    s("path", { class: "prediction", d: `M${mx} ${my}L${px} ${py}` }),
    bars(item, axes, at, item.predicted).map((d) => s("path", { class: "prediction", d })),
    s("path", { class: "prediction ghost", transform: `translate(${px} ${py})`, d: SHAPES.circle(3.2) }));
}

function legendOf(app) {
  const names = new Set(app.items.points.filter((item) => item.name).map((item) => item.name));
  const isThere = ([kind, , text]) => app.items.points.length > 0 && (kind !== "hand" || names.has(text));
  const samples = LEGEND.filter(isThere).map(([kind, shape, text]) => h("span", {}, s("svg", { viewBox: "-9 -9 18 18", "aria-hidden": "true" },
    s("g", { class: `mark ${kind}` }, kind === "knee" ? s("path", { class: "ring", d: SHAPES.circle(7.5) }) : null,
      s("path", { class: "shape", d: SHAPES[shape](shape === "diamond" ? 4.5 : 5) }))), text));
  const dot = (kind, text) => h("span", {}, s("svg", { viewBox: "-9 -9 18 18", "aria-hidden": "true" },
    s("circle", { class: `dot ${kind}`, r: kind ? 3.2 : 3.6 })), text);
  const line = (kind, text) => h("span", {}, s("svg", { class: "line", viewBox: "0 0 26 16", "aria-hidden": "true" },
    s("path", { class: kind, d: "M0 8H26" })), text);
  return [
    ...samples,
    app.items.points.length ? h("span", {}, s("svg", { viewBox: "-9 -9 18 18", "aria-hidden": "true" }, s("path", { class: "prediction", d: "M-8 6L5 -4" }),
      s("path", { class: "prediction ghost", transform: "translate(5 -4)", d: SHAPES.circle(3.2) })), "predicted") : null,
    app.items.trials.length ? dot("", "trial") : null,
    app.items.trials.some((item) => !item.feasible) ? dot("infeasible", "trial that breaks a budget") : null,
    app.data.budgets.length ? line("budget", "budget") : null,
    line("reference", "dense model"),
  ].filter(Boolean);
}
