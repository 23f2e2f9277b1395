// Scales of axes: where a value stands, and which values are written beside the axis.

function scaleOf(values, length, { log = false, from = null, to = null, pad = 0.06 } = {}) {
  const known = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  let low = from ?? Math.min(...known);
  let high = to ?? Math.max(...known);
  if (!known.length && (from === null || to === null)) [low, high] = [log ? 0.1 : 0, 1];
  const map = log ? Math.log10 : (value) => value;
  let [start, end] = [map(low), map(high)];
  if (start === end) [start, end] = log ? [start - 0.1, end + 0.1] : [start - (Math.abs(start) * 0.05 || 1), end + (Math.abs(end) * 0.05 || 1)];
  const spare = (end - start) * pad;
  if (from === null) start -= spare;
  if (to === null) end += spare;
  const at = (value) => length * (map(Math.max(value, log ? 1e-300 : -Infinity)) - start) / (end - start);
  return { at, log, start, end, length, ticks: log ? logTicks(start, end) : linearTicks(start, end) };
}

function linearTicks(start, end, wanted = 6) {
  const rough = (end - start) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || rough;
  const ticks = [];
  for (let tick = Math.ceil(start / step); tick * step <= end + 1e-12; tick += 1) ticks.push(Number((tick * step).toPrecision(12)));
  return ticks;
}

function logTicks(start, end) {
  for (const factors of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]]) {
    const ticks = [];
    for (let decade = Math.floor(start); decade <= Math.ceil(end); decade += 1) {
      for (const factor of factors) {
        const value = factor * 10 ** decade;
        if (Math.log10(value) >= start && Math.log10(value) <= end) ticks.push(Number(value.toPrecision(6)));
      }
    }
    if (ticks.length >= 4) return ticks;
  }
  return linearTicks(10 ** start, 10 ** end, 5).filter((tick) => tick > 0);
}

// Costs that span less than this read better on a plain axis.
const LOG_FROM = 6;

function wantsLog(axis, values) {
  const known = values.filter((value) => Number.isFinite(value));
  if (axis === "accuracy" || known.some((value) => value <= 0)) return false;
  return Math.max(...known) > LOG_FROM * Math.min(...known);
}

// Grid, ticks and titles of a plot; `box` has left, top, width and height.
function frame(box, x, y, labelX, labelY, titleX, titleY) {
  const parts = [];
  const bottom = box.top + box.height;
  for (const tick of thinned(x.ticks, Math.floor(box.width / 62))) {
    const at = box.left + x.at(tick);
    parts.push(s("path", { class: "grid", d: `M${at} ${box.top}V${bottom}` }),
      s("text", { x: at, y: bottom + 16, "text-anchor": "middle" }, labelX(tick)));
  }
  for (const tick of thinned(y.ticks, Math.floor(box.height / 26))) {
    const at = bottom - y.at(tick);
    parts.push(s("path", { class: "grid", d: `M${box.left} ${at}H${box.left + box.width}` }),
      s("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, labelY(tick)));
  }
  parts.push(s("path", { class: "axis", d: `M${box.left} ${box.top}V${bottom}H${box.left + box.width}` }),
    s("text", { class: "title", x: box.left + box.width / 2, y: bottom + 36, "text-anchor": "middle" }, titleX),
    s("text", { class: "title", x: box.left - 40, y: box.top - 12, "text-anchor": "start" }, titleY));
  return parts;
}

function thinned(ticks, most) {
  const step = Math.max(1, Math.ceil(ticks.length / Math.max(2, most)));
  return ticks.filter((_, index) => index % step === 0);
}
