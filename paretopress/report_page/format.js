// Numbers as the command line shows them (paretopress/tables.py), and names of axes.

const BYTES = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]];
const UNITS = {
  latency: [["s", 1e3], ["ms", 1], ["µs", 1e-3]],
  energy: [["J", 1e6], ["mJ", 1e3], ["µJ", 1]],
  macs: [["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]],
  size: BYTES, peak_memory: BYTES, onnx_bytes: BYTES, disk_bytes: BYTES,
};
const NAMES = {
  latency: "latency", relative: "relative time", size: "stored size", macs: "MACs", peak_memory: "peak memory",
  energy: "energy", robust: "time on the worst target", onnx_bytes: "ONNX file", disk_bytes: "artefact on disk",
  divergence: "divergence (nats)",
};
const NONE = "–";

const baseOf = (axis) => axis.split("@")[0];
const deviceOf = (axis) => axis.split("@").slice(1).join("@");

function axisName(data, axis) {
  if (axis === "accuracy") return data.metric.label;
  const name = NAMES[baseOf(axis)] || axis;
  return deviceOf(axis) ? `${name} on ${deviceOf(axis)}` : name;
}

// `extra` decimals tell ticks apart that would read alike.
function shown(data, axis, value, extra = 0) {
  if (value === null || value === undefined) return NONE;
  if (axis === "accuracy") return data.metric.share ? `${(100 * value).toFixed(1 + extra)} %` : digits(value, 4 + extra);
  const base = baseOf(axis);
  if (base === "robust") return `${digits(100 * value, 3 + extra)}%`;
  const units = UNITS[base];
  if (!units) return digits(value, 3 + extra);
  const [unit, factor] = units.find((pair) => Math.abs(value) >= pair[1]) || units[units.length - 1];
  const number = value / factor;
  const places = Math.abs(number) >= 100 || (factor === 1 && (unit === "" || unit === "B")) ? 0
    : Math.abs(number) >= 10 ? 1 : 2;
  return `${number.toFixed(places + extra)} ${unit}`.trim();
}

function digits(value, count) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(Math.max(0, count - 2));
  return String(Number(value.toPrecision(count)));
}

// How values beside an axis are written: alike, and no two of them the same.
function tickTexts(data, axis, ticks) {
  for (const extra of [0, 1, 2]) {
    if (new Set(ticks.map((tick) => shown(data, axis, tick, extra))).size === ticks.length) return (value) => shown(data, axis, value, extra);
  }
  return (value) => shown(data, axis, value, 3);
}

function ratio(value, dense) {
  if (!value || !dense) return "";
  return `${(dense / value).toFixed(2)}x`;
}

const percent = (share, places = 0) => `${(100 * share).toFixed(places)}%`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
