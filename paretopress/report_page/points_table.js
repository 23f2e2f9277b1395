// The verified points as a table: the same figures as in the plot, for eyes, screen readers and paper.

const SORTED_BY = ["id", "accuracy", "latency", "predicted", "size", "macs", null];

function drawPoints(app) {
  const { data } = app;
  const points = app.items.points;
  if (!points.length) {
    replace("points", h("tbody", {}, h("tr", {}, h("td", {}, "No point is verified yet: trials are predicted costs and the metric on the search set."))));
    return;
  }
  const heads = data.headings.map((text, column) => {
    const key = SORTED_BY[column];
    const isSorted = app.state.sort?.key === key && key !== null;
    const order = isSorted ? (app.state.sort.up ? "ascending" : "descending") : "none";
    const sign = isSorted ? (app.state.sort.up ? " ▴" : " ▾") : "";
    const content = key === null ? text : h("button", { type: "button", on: { click: () => sortBy(app, key) } }, text + sign);
    return h("th", { scope: "col", class: column < 6 ? "number" : null, "aria-sort": key === null ? null : order }, content);
  });
  const rows = inOrder(app).map((item) => {
    const kind = `${item.key === app.state.selected ? "selected " : ""}${item.knee ? "knee" : item.why_not || !item.feasible ? "off" : ""}`;
    return h("tr", { "data-key": item.key, class: kind.trim() || null }, item.cells.map((cell, column) => (column === 0
      ? h("td", { class: "number" }, h("button", { type: "button", class: "open", "aria-label": `Open the policy of point ${cell}`, on: { click: () => select(app, item, true) } }, cell))
      : h("td", { class: column < 6 ? "number" : null }, cell))));
  });
  replace("points", h("caption", { class: "quiet" }, `Verified points: ${data.metric.label} on data that the search never saw. Headings sort.`),
    h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
}

function sortBy(app, key) {
  const before = app.state.sort;
  app.state.sort = { key, up: before?.key === key ? !before.up : true };
  drawPoints(app);
  applyLimits(app);
  [...byId("points").querySelectorAll("th button")][SORTED_BY.indexOf(key)].focus();
}

function inOrder(app) {
  const points = [...app.items.points];
  const { sort, device } = app.state;
  const latency = Object.keys(app.data.axes).find((axis) => ["latency", "relative"].includes(baseOf(axis)) && deviceOf(axis) === device);
  const slowFirst = (item) => (item.dense ? -Infinity : -(latency && judgedOf(item, latency)) || 0);
  if (!sort) return points.sort((a, b) => Boolean(a.why_not) - Boolean(b.why_not) || slowFirst(a) - slowFirst(b) || a.id - b.id);
  const value = (item) => {
    if (sort.key === "id") return item.id;
    if (sort.key === "predicted") return latency && item.predicted[latency] ? item.predicted[latency][0] : null;
    return judgedOf(item, sort.key === "latency" ? latency : sort.key);
  };
  const sign = sort.up ? 1 : -1;
  return points.sort((a, b) => {
    const [one, other] = [value(a), value(b)];
    if (one === null || other === null) return (one === null) - (other === null) || a.id - b.id;
    return sign * (one - other) || a.id - b.id;
  });
}
