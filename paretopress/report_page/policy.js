// The policy of the clicked point: its figures, how to export it, and a heat map of what it does to every layer.

const KINDS = ["channels", "rank", "sparsity", "weights"];

function drawPolicy(app) {
  const item = app.byKey.get(app.state.selected);
  replace("chosen", item ? [document.createTextNode(spoken(app.data, item)),
    h("button", { type: "button", on: { click: () => showPolicy() } }, "Its layers")] : []);
  byId("chosen").hidden = !item;
  if (!item) {
    replace("policy", h("h2", { id: "policy-title" }, "Policy"), h("p", { class: "quiet" }, "Choose a point or a trial above."));
    return;
  }
  replace("policy",
    h("h2", { id: "policy-title" }, `Policy of ${titleOf(item)}`),
    h("div", { class: "policy-head" }, h("div", {}, h("p", {}, statusOf(item)), h("div", { class: "scroll" }, figuresTable(app, item))), h("div", {}, commandsOf(app, item))),
    h("div", { class: "scroll" }, heatMap(app, item)));
}

function showPolicy() {
  byId("policy").focus({ preventScroll: true });
  byId("policy").scrollIntoView({ block: "start" });
}

function figuresTable(app, item) {
  const { data } = app;
  const dense = app.items.points.find((point) => point.dense) || app.items.trials.find((trial) => !app.bulk.rows[trial.row]);
  const rows = Object.keys(data.axes).filter((axis) => figureOf(item, axis)).map((axis) => {
    const [measured, predicted] = [item.measured[axis], item.predicted[axis]];
    const base = item.beside?.[axis] ?? (dense ? valueOf(dense, axis) : null);
    const factor = axis !== "accuracy" && data.axes[axis] === "min" ? ratio(valueOf(item, axis), base) : "";
    return h("tr", {}, h("th", { scope: "row" }, axisName(data, axis)),
      h("td", { class: "number" }, measured ? withEnds(data, axis, measured) : NONE),
      h("td", { class: "number" }, predicted ? withEnds(data, axis, predicted) : NONE), h("td", { class: "number" }, factor));
  });
  const second = item.kind === "trial" ? "predicted / searched" : "predicted / search set";
  return h("table", {}, h("thead", {}, h("tr", {}, ["", "measured", second, "dense / this"].map((text, column) =>
    h("th", { scope: "col", class: column ? "number" : null }, text)))), h("tbody", {}, rows));
}

function withEnds(data, axis, [value, low, high]) {
  const text = shown(data, axis, value);
  return low === null || high === null || low === high ? text : `${text} (${shown(data, axis, low)} to ${shown(data, axis, high)})`;
}

function commandsOf(app, item) {
  const { data } = app;
  const command = (label, text) => [h("p", { class: "quiet" }, label), h("div", { class: "command" }, h("code", {}, text), copyButton(text, label))];
  if (item.kind === "point") {
    return [
      command("As an ONNX file", `paretopress export ${data.run} --pick id:${item.id} --format onnx -o model-${item.id}.onnx`),
      command("As a folder that paretopress.load reads", `paretopress export ${data.run} --pick id:${item.id} -o model-${item.id}`),
    ];
  }
  const name = `trial-${item.id}.json`;
  const factories = `--model ${data.model || "PKG.MOD:FUNCTION"} --data ${data.data || "PKG.MOD:FUNCTION"}`;
  return [
    h("p", { class: "quiet" }, `A trial is not stored as a model. Copy its policy into ${name}; apply builds and measures it:`),
    h("div", { class: "command" }, h("code", {}, `policy of trial ${item.id}, JSON`), copyButton(plainPolicy(app, item), `the policy of trial ${item.id}`)),
    command("Build and measure", `paretopress apply --policy ${name} ${factories} -o trial-${item.id}`),
  ];
}

function heatMap(app, item) {
  const chosen = choicesOf(app, item);
  const places = costliest(chosen);
  const made = app.bulk.policies[app.bulk.made[item.row]] || null;
  const layers = app.bulk.layers.length ? app.bulk.layers : layersOfUnits(app);
  const body = h("tbody", {});
  const row = (index) => layerRow(app, layers[index], index, made, chosen, places);
  inTurns(app, item.key, layers.length, (index) => body.append(row(index)), () => body.append(...[otherTime(made) || []].flat()));
  const time = app.data.time ? axisName(app.data, app.data.time) : "time";
  const heads = ["layer", "channels", "rank", "weight bits", "format", "bytes", `share of ${time}`, "why"];
  const about = made ? "Darker cells take more away." : "Darker cells take more away. What a layer is left with and its share of the time are known of verified points and of the trials on their front.";
  return h("table", { class: "heat" }, h("caption", { class: "quiet" }, about),
    h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), body);
}

const FIRST_ROWS = 24;
const ROWS_A_FRAME = 20;

// What fits on the screen is drawn at once, the rest of a deep model frame by frame: a click is answered immediately.
function inTurns(app, key, count, add, end) {
  let next = 0;
  const turn = (most) => {
    if (app.state.selected !== key) return;   // another policy has been opened meanwhile
    for (const stop = Math.min(count, next + most); next < stop; next += 1) add(next);
    if (next < count) requestAnimationFrame(() => turn(ROWS_A_FRAME));
    else end();
  };
  turn(FIRST_ROWS);
}

// Layers of a run without `anatomy.json`: whatever its policies name.
function layersOfUnits(app) {
  const names = [...app.units.keys()].map((name) => name.slice(0, name.lastIndexOf("/")));
  return [...new Set(names)].map((name) => ({ name, kind: "", shape: null, makes: name }));
}

function layerRow(app, layer, index, made, chosen, places) {
  const names = unitsOf(layer);
  const row = made ? made.layers[index] : undefined;
  const shape = layer.shape ? layer.shape.join(" x ") : "";
  const focus = KINDS.map((kind) => names[kind]).find((name) => app.units.has(name));
  const name = focus ? h("button", { type: "button", title: "Show its sensitivity", on: { click: () => showUnit(app, focus, true) } }, layer.name) : layer.name;
  const head = h("th", { scope: "row", class: "layer" }, name, h("small", {}, `${layer.kind} ${shape}`.trim()));
  if (row === null) return h("tr", {}, head, h("td", { class: "cell h6", colspan: 6 }, "dropped with its branch"), h("td", { class: "why" }, reasonsOf(app, layer, names, chosen, places)));
  return h("tr", {}, head, channelsCell(layer, names, row, chosen), rankCell(names, row, chosen), bitsCell(names, chosen),
    formatCell(names, row, chosen), bytesCell(app, index, row), shareCell(row), h("td", { class: "why" }, reasonsOf(app, layer, names, chosen, places)));
}

const unitsOf = (layer) => ({ channels: layer.makes ? `${layer.makes}/channels` : null, rank: `${layer.name}/rank`,
  sparsity: `${layer.name}/sparsity`, weights: `${layer.name}/weights` });

const levelOf = (removed) => (removed <= 0.001 ? 0 : Math.min(6, Math.max(1, Math.ceil(6 * removed))));
const cell = (level, text, title) => h("td", { class: `cell h${level}`, title }, text);

function channelsCell(layer, names, row, chosen) {
  const option = chosen.get(names.channels);
  if (row) {
    const [out, inputs] = row;
    return cell(levelOf(1 - out / layer.shape[0]), out === layer.shape[0] ? `${out}` : `${out} of ${layer.shape[0]}`, `reads ${inputs} channels`);
  }
  return option ? cell(levelOf(option.plain.keep === undefined ? 0 : 1 - option.plain.keep), option.words) : cell(0, layer.shape ? `${layer.shape[0]}` : NONE);
}

function rankCell(names, row, chosen) {
  const option = chosen.get(names.rank);
  if (!option) return cell(0, "full");
  return cell(levelOf(option.amount ?? 0.5), row && row[2] !== null ? `${row[2]}` : `${option.plain.rank}`, option.words);
}

function bitsOf(plain) {
  return plain.weights ?? plain.clustered ?? (plain.half ? 16 : plain.binary ?? 32);
}

function bitsCell(names, chosen) {
  const option = chosen.get(names.weights);
  const bits = option ? bitsOf(option.plain) : 32;
  const level = bits >= 32 ? 0 : bits >= 16 ? 2 : bits >= 8 ? 3 : bits >= 4 ? 4 : bits >= 3 ? 5 : 6;
  return cell(level, `${bits}`, option ? option.words : "32-bit floats");
}

function formatCell(names, row, chosen) {
  const [format, sparse] = [chosen.get(names.weights), chosen.get(names.sparsity)];
  const words = [row ? row[3] : format ? format.words : "32-bit floats", sparse ? sparse.words : null].filter(Boolean);
  return h("td", {}, words.join(", "));
}

function bytesCell(app, index, row) {
  if (!row) return h("td", {}, NONE);
  const dense = app.bulk.dense?.layers[index]?.[5];
  return cell(dense ? levelOf(1 - row[5] / dense) : 0, shown(app.data, "size", row[5]), dense ? `dense: ${shown(app.data, "size", dense)}` : null);
}

function shareCell(row) {
  const share = row ? row[6] : null;
  if (share === null || share === undefined) return h("td", { class: "share" }, NONE);
  const bar = h("span", {});
  bar.style.width = `${Math.min(100, 100 * share)}%`;
  return h("td", { class: "share" }, h("span", { class: "gauge", "aria-hidden": "true" }, bar), percent(share, 1));
}

function reasonsOf(app, layer, names, chosen, places) {
  const lines = KINDS.map((kind) => {
    const name = names[kind];
    if (!name) return null;
    const option = chosen.get(name);
    if (!option) return kind === "channels" || kind === "weights" ? whyDense(app, name) : null;
    return whyChosen(app.units.get(name), option, places.get(name), places.size);
  }).filter(Boolean);
  if (layer.frozen) lines.unshift(`frozen: ${layer.frozen}`);
  if (layer.end) lines.push(`${layer.end} layer`);
  return [...new Set(lines)].map((line) => h("div", {}, line));
}

function otherTime(made) {
  if (!made?.other_time) return null;
  const names = { kernels: "kernels without weights", conversions: "conversions between formats", call: "the call of the runtime" };
  return Object.entries(names).filter(([key]) => made.other_time[key] > 0).map(([key, text]) => h("tr", {},
    h("th", { scope: "row", class: "layer" }, text), h("td", { colspan: 5 }), shareCell([0, 0, 0, 0, 0, 0, made.other_time[key]]), h("td", {})));
}
