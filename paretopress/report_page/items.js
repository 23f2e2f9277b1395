// Verified points and trials as one list, and what is known of them.

function itemsOf(data) {
  const points = data.points.map((point) => ({ ...point, kind: "point", key: `point-${point.id}` }));
  const trials = data.trials.number.map((number, index) => ({
    kind: "trial", id: number, key: `trial-${number}`, row: data.trials.row[index],
    feasible: data.trials.feasible[index] === "1", state: { C: "complete", P: "screened", F: "failed" }[data.trials.state[index]],
    why_not: data.trials.reason[index] < 0 ? null : data.reasons[data.trials.reason[index]],
    measured: {}, predicted: trialValues(data, index),
  }));
  return { points, trials };
}

function trialValues(data, index) {
  const found = {};
  for (const [axis, column] of Object.entries(data.trials.values)) {
    if (column[index] !== null) found[axis] = [column[index], null, null];
  }
  return found;
}

const figureOf = (item, axis) => item.measured[axis] || item.predicted[axis] || null;
const valueOf = (item, axis) => { const figure = figureOf(item, axis); return figure ? figure[0] : null; };
const isMeasured = (item, axis) => Boolean(item.measured[axis]);

// What limits are held against: what was measured, else the upper end of what is predicted.
function judgedOf(item, axis) {
  if (item.measured[axis]) return item.measured[axis][0];
  const figure = item.predicted[axis];
  if (!figure) return null;
  return axis === "accuracy" ? figure[0] : figure[2] ?? figure[0];
}

function statusOf(item) {
  if (item.kind === "trial") {
    if (item.state !== "complete") return `${item.state}: ${item.why_not}`;
    return item.feasible ? "searched, not verified" : "searched, breaks a budget";
  }
  if (item.dense) return item.why_not ? `dense model, ${item.why_not}` : "dense model";
  if (!item.feasible) return `infeasible: ${item.why_not}`;
  if (item.why_not) return `not on the front: ${item.why_not}`;
  return item.knee ? "on the front, its knee" : "on the front";
}

function titleOf(item) {
  const name = item.kind === "trial" ? `trial ${item.id}` : `#${item.id}`;
  return item.name && item.kind === "point" ? `${name} ${item.name}` : name;
}

function within(data, item, limits) {
  return Object.entries(limits).every(([axis, limit]) => {
    if (limit === null) return true;
    const value = judgedOf(item, axis);
    if (value === null) return false;
    const slack = Math.abs(limit) * 1e-9;
    return data.axes[axis] === "max" ? value >= limit - slack : value <= limit + slack;
  });
}

// The figures that a tooltip and a label say of an item.
function mainAxes(data, device) {
  const wanted = [...data.objectives, "macs", ...Object.keys(data.axes).filter((axis) => baseOf(axis) === "peak_memory")];
  return [...new Set(wanted)].filter((axis) => axis in data.axes && (!device || !deviceOf(axis) || deviceOf(axis) === device));
}

function spoken(data, item) {
  const figures = mainAxes(data).filter((axis) => figureOf(item, axis))
    .map((axis) => `${axisName(data, axis)} ${shown(data, axis, valueOf(item, axis))}${isMeasured(item, axis) || item.kind === "trial" ? "" : " predicted"}`);
  return `${titleOf(item)}, ${statusOf(item)}: ${figures.join(", ")}`;
}
