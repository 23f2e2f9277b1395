// Search history: the metric of every trial, and the hypervolume of all that was found so far.

function drawHistory(app) {
  const { data } = app;
  byId("history").hidden = !data.trials.total;
  if (!data.trials.total) return;
  const counts = { COMPLETE: "scored", PRUNED: "screened before scoring", FAIL: "failed" };
  const words = Object.entries(counts).filter(([state]) => data.counts[state]).map(([state, text]) => `${data.counts[state]} ${text}`);
  const partly = data.trials.number.length < data.trials.total ? `, ${data.trials.number.length} of them drawn` : "";
  byId("history-about").textContent = `${plural(data.trials.total, "trial")}${partly}: ${words.join(", ")}.`;
  drawTrials(app);
  drawVolume(app);
}

function smallBox(id) {
  const width = roomOf(id, 280, 640);
  return { width, height: 250, box: { left: 64, top: 34, width: width - 82, height: 168 } };
}

function drawTrials(app) {
  const { data } = app;
  const trials = app.items.trials.filter((item) => valueOf(item, "accuracy") !== null);
  if (!trials.length) { replace("trials"); return; }
  const { width, height, box } = smallBox("trials");
  const x = scaleOf([], box.width, { from: 0, to: Math.max(1, ...data.trials.number) });
  const y = scaleOf(trials.map((item) => valueOf(item, "accuracy")), box.height);
  const dots = trials.map((item) => s("circle", { class: `dot${item.feasible ? "" : " infeasible"}`, "data-key": item.key, r: 2.6,
    cx: round(box.left + x.at(item.id)), cy: round(box.top + box.height - y.at(valueOf(item, "accuracy"))) }));
  const limits = data.budgets.filter((budget) => budget.axis === "accuracy").map((budget) => box.top + box.height - y.at(budget.limit))
    .filter((py) => py >= box.top && py <= box.top + box.height).map((py) => s("path", { class: "budget", d: `M${box.left} ${py}H${box.left + box.width}` }));
  const svg = picture(width, height, `${data.metric.label} on the search set by trial`,
    frame(box, x, y, (value) => String(value), tickTexts(data, "accuracy", y.ticks), "trial", `${data.metric.label} on the search set`), limits, dots);
  svg.addEventListener("click", (event) => { const item = app.byKey.get(event.target.dataset.key); if (item) select(app, item, true); });
  svg.addEventListener("pointerover", (event) => { const item = app.byKey.get(event.target.dataset.key); if (item) tip.show(event, tipOf(app, item)); });
  svg.addEventListener("pointerout", tip.hide);
  replace("trials", svg);
}

function drawVolume(app) {
  const { data } = app;
  if (data.history.length < 2) { replace("volume"); return; }
  const { width, height, box } = smallBox("volume");
  const x = scaleOf([], box.width, { from: 0, to: data.history[data.history.length - 1][0] });
  const y = scaleOf(data.history.map(([, volume]) => volume), box.height);
  const d = data.history.map(([count, volume], index) => {
    const [px, py] = [round(box.left + x.at(count)), round(box.top + box.height - y.at(volume))];
    return index ? `H${px}V${py}` : `M${px} ${py}`;
  }).join("");
  const last = data.history[data.history.length - 1][1];
  const title = `hypervolume of what was found (now ${digits(last, 3)} of the box up to the dense model)`;
  replace("volume", picture(width, height, title,
    frame(box, x, y, (value) => String(value), (value) => digits(value, 3), "trials so far", width > 420 ? title : `hypervolume (now ${digits(last, 3)})`),
    s("path", { class: "series", d })));
}
