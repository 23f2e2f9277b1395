// How far predictions can be trusted: predicted against measured time, rank correlations; what is not offered; facts.

function drawTrust(app) {
  const { data } = app;
  const axis = Object.keys(data.axes).find((name) => baseOf(name) === "latency" && app.items.points.some((item) => item.measured[name] && item.predicted[name]));
  const rows = proxyRows(data);
  byId("trust").hidden = !axis && !rows.length;
  if (axis) drawErrors(app, axis);
  else replace("errors");
  if (!rows.length) { replace("proxies"); return; }
  const heads = ["cheaper figure", "of", "Kendall", "Spearman", ""];
  replace("proxies", h("table", {}, h("caption", { class: "quiet" }, "Rank correlations of cheaper figures with dearer ones: 1 orders alike, 0 is chance."),
    h("thead", {}, h("tr", {}, heads.map((text, column) => h("th", { scope: "col", class: column > 0 && column < 4 ? "number" : null }, text)))),
    h("tbody", {}, rows)));
}

function drawErrors(app, axis) {
  const { data } = app;
  const points = app.items.points.filter((item) => item.measured[axis] && item.predicted[axis]);
  const values = points.flatMap((item) => [...item.measured[axis], ...item.predicted[axis]].filter((value) => value !== null));
  const { width, height, box } = smallBox("errors");
  const log = wantsLog(axis, values);
  const [x, y] = [scaleOf(values, box.width, { log }), scaleOf(values, box.height, { log })];
  const at = { x: (value) => round(box.left + x.at(value)), y: (value) => round(box.top + box.height - y.at(value)) };
  const marks = points.map((item) => {
    const [mx, my] = [item.predicted[axis], item.measured[axis]];
    const shape = shapeOf(item);
    const bar = mx[1] !== null && mx[2] !== null ? s("path", { class: "bar", d: `M${at.x(mx[1])} ${at.y(my[0])}H${at.x(mx[2])}` }) : null;
    const spread = my[1] !== null && my[2] !== null ? s("path", { class: "bar", d: `M${at.x(mx[0])} ${at.y(my[1])}V${at.y(my[2])}` }) : null;
    return s("g", { class: classesOf(app, item).replace("guess", "").replace("selected", ""), "data-key": item.key }, bar, spread,
      s("path", { class: "shape", transform: `translate(${at.x(mx[0])} ${at.y(my[0])})`, d: SHAPES[shape](4) }));
  });
  const error = data.latency_error || {};
  const figure = error.median_abs_pct === null || error.median_abs_pct === undefined ? "" : ` (median error ${error.median_abs_pct.toFixed(1)} %)`;
  const ends = [Math.min(...values), Math.max(...values)];
  const svg = picture(width, height, `Measured against predicted ${axisName(data, axis)}`,
    frame(box, x, y, tickTexts(data, axis, x.ticks), tickTexts(data, axis, y.ticks), `predicted ${axisName(data, axis)}`, `measured${figure}`),
    s("path", { class: "diagonal", d: `M${at.x(ends[0])} ${at.y(ends[0])}L${at.x(ends[1])} ${at.y(ends[1])}` }), marks);
  svg.addEventListener("click", (event) => { const item = app.byKey.get(event.target.closest("[data-key]")?.dataset.key); if (item) select(app, item, true); });
  replace("errors", svg);
}

function proxyRows(data) {
  const cell = (value) => h("td", { class: "number" }, value === null || value === undefined ? NONE : value.toFixed(2));
  const own = data.proxies || {};
  const rows = (own.measured || []).map((one) => h("tr", {}, h("td", {}, one.name),
    h("td", { class: "number" }, plural(one.candidates, "candidate")), cell(one.kendall), cell(one.spearman), h("td", {}, one.used ? "used" : "")));
  const named = [
    ["score before the rebuild, with that after it", own.kendall_stitched_refitted, null],
    ["search set, with holdout", own.kendall_search_holdout, own.spearman_search_holdout],
  ].filter(([, kendall, spearman]) => typeof kendall === "number" || typeof spearman === "number");
  rows.push(...named.map(([text, kendall, spearman]) => h("tr", {}, h("td", {}, text), h("td", { class: "number" }, "finalists"), cell(kendall), cell(spearman), h("td", {}))));
  const error = data.latency_error || {};
  if (typeof error.spearman === "number") {
    rows.push(h("tr", {}, h("td", {}, "predicted time, with measured time"), h("td", { class: "number" }, plural(error.points, "point")), cell(null), cell(error.spearman),
      h("td", {}, error.median_abs_pct === undefined ? "" : `median error ${error.median_abs_pct.toFixed(1)} %`)));
    if (typeof error.speedup_median_abs_pct === "number") {
      rows.push(h("tr", {}, h("td", {}, "predicted speed-up, with measured one"), h("td", { class: "number" }, plural(error.points - 1, "point")), cell(null), cell(null),
        h("td", {}, `median error ${error.speedup_median_abs_pct.toFixed(1)} %`)));
    }
  }
  return rows;
}

const MOST_ROWS = 200;

function drawDropped(app) {
  const rows = app.bulk.dropped;
  byId("dropped").hidden = !rows.length;
  if (!rows.length) return;
  const total = rows.reduce((sum, [choices, , units]) => sum + choices.length * units.length, 0);
  const filter = h("input", { type: "search", placeholder: "layer, choice or reason", "aria-label": "Filter what is not offered" });
  const body = h("tbody", {});
  const note = h("p", { class: "quiet" });
  const list = () => {
    const wanted = filter.value.trim().toLowerCase();
    const found = rows.filter(([choices, reason, units]) => !wanted || `${choices.join(" ")} ${reason} ${units.join(" ")}`.toLowerCase().includes(wanted));
    body.replaceChildren(...found.slice(0, MOST_ROWS).map(([choices, reason, units]) => h("tr", {}, h("td", {}, reason),
      h("td", {}, choices.map((choice) => h("div", {}, choice === "*" ? "everything" : shortened(choice)))),
      h("td", {}, units.length > 6 ? h("details", {}, h("summary", {}, plural(units.length, "unit")), units.join(", ")) : units.join(", ")))));
    note.textContent = found.length > MOST_ROWS ? `${MOST_ROWS} of ${found.length} rows shown: filter for the others.` : "";
  };
  filter.addEventListener("input", list);
  list();
  replace("dropped-body", h("details", {}, h("summary", {}, `${plural(total, "choice")} in ${plural(rows.length, "row")}`),
    h("div", { class: "controls" }, filter), h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["reason", "choice", "units"].map((text) => h("th", { scope: "col" }, text)))), body)), note));
}

function drawFacts(app) {
  const { data } = app;
  const lines = [...data.facts, ...data.notes];
  if (data.model) lines.push(`model ${data.model}${data.data ? `, data ${data.data}` : ""}`);
  if (typeof data.space_log10 === "number") lines.push(`10^${data.space_log10.toFixed(1)} policies could be chosen from`);
  if (data.budgets.length === 0) lines.push("no budgets were set");
  lines.push(`run ${data.run}`);
  replace("facts", lines.map((line) => h("li", {}, line)));
}

function drawSummary(app) {
  const { data } = app;
  const axes = mainAxes(data, app.state.device).filter((axis) => data.objectives.includes(axis));
  const card = (title, item) => h("dl", { class: "card" }, h("dt", {}, title),
    h("dd", {}, axes.slice(0, 1).map((axis) => shown(data, axis, valueOf(item, axis)))),
    h("dd", {}, axes.slice(1).map((axis) => shown(data, axis, valueOf(item, axis))).join(" · ")));
  const points = app.items.points;
  const [dense, knee] = [points.find((item) => item.dense), points.find((item) => item.knee)];
  const front = points.filter((item) => item.feasible && !item.why_not).length;
  const gains = knee && dense && knee !== dense ? axes.slice(1).map((axis) => `${axisName(data, axis)} ${ratio(valueOf(knee, axis), valueOf(dense, axis))}`) : [];
  const volume = data.hypervolume ?? (data.history.length ? data.history[data.history.length - 1][1] : null);
  replace("summary", dense ? card("dense model", dense) : null, knee ? card(`knee, #${knee.id}`, knee) : null,
    gains.length ? h("dl", { class: "card" }, h("dt", {}, "the knee against dense"), h("dd", {}, gains.map((gain) => gain.split(" ").pop()).join(" · ")), h("dd", {}, gains.join(" · "))) : null,
    h("dl", { class: "card" }, h("dt", {}, points.length ? "verified front" : "trials"), h("dd", {}, points.length ? plural(front, "point") : data.trials.total),
      h("dd", {}, points.length ? `of ${points.length} verified, after ${plural(data.trials.total, "trial")}` : "nothing is verified yet")),
    volume === null ? null : h("dl", { class: "card" }, h("dt", {}, "hypervolume"), h("dd", {}, digits(volume, 3)), h("dd", {}, "of the box up to the dense model")));
}
