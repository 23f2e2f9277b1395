// Policies unpacked, and why a unit got its choice: what it loses alone, and what the next stronger choice would lose.

const FIRST = 48;

// Units with their options; number 0 of a unit is dense. What is not offered comes with its reason.
function readUnits(bulk) {
  const units = new Map(bulk.units.map(([name, axis, options], place) => [name, {
    name, axis, place,
    options: options.map(([choice, family, amount, loss, mark]) => ({
      words: shortened(bulk.choices[choice][0]), plain: bulk.choices[choice][1], family, amount, loss, estimated: mark === 1, failed: mark === 2,
    })),
  }]));
  const refused = new Map();
  for (const [choices, reason, names] of bulk.dropped) {
    for (const name of names) if (choices.includes("*") || !refused.has(name)) refused.set(name, reason);
  }
  for (const group of bulk.groups) if (group.frozen) refused.set(`${group.name}/channels`, group.frozen);
  return { units, refused };
}

// Shares of channels that are no round number: `keep 0.666667` says no more than `keep 0.667`.
const shortened = (words) => words.replace(/\d+\.\d{4,}/g, (number) => digits(Number(number), 3));

function choicesOf(app, item) {
  const row = app.bulk.rows[item.row] || "";
  const chosen = new Map();
  for (const unit of app.units.values()) {
    const number = row.length > unit.place ? row.charCodeAt(unit.place) - FIRST : 0;
    if (number > 0) chosen.set(unit.name, unit.options[number - 1]);
  }
  return chosen;
}

function plainPolicy(app, item) {
  const units = {};
  for (const [name, option] of choicesOf(app, item)) units[name] = option.plain;
  return JSON.stringify({ schema: "paretopress-policy/1", units }, null, 1);
}

// Places of the decisions of a policy by what each loses alone, the costliest first.
function costliest(chosen) {
  const known = [...chosen].filter(([, option]) => option.loss !== null).sort((a, b) => b[1].loss - a[1].loss);
  return new Map(known.map(([name], place) => [name, place + 1]));
}

const stronger = (unit, first, second) => (unit.axis === "bits" ? second.amount < first.amount : second.amount > first.amount);

function nextStronger(unit, option) {
  const others = unit.options.filter((other) => other.family === option.family && other.amount !== null && stronger(unit, option, other));
  return others.reduce((least, other) => (!least || stronger(unit, other, least) ? other : least), null);
}

const lossText = (option) => (option.failed ? "cannot be measured" : `${option.estimated ? "about " : ""}${digits(option.loss, 2)}`);

function whyChosen(unit, option, place, count) {
  if (option.loss === null && !option.failed) return `${option.words}: not in the sensitivity table`;
  const parts = [`${option.words}: loses ${lossText(option)} alone`];
  if (place && count > 1) parts.push(place === 1 ? `the costliest of ${count} decisions` : `${ordinal(place)} costliest of ${count}`);
  const next = nextStronger(unit, option);
  if (next) {
    const times = !next.failed && option.loss > 0 ? ` (${digits(next.loss / option.loss, 2)}x)` : "";
    parts.push(`${next.words} would lose ${lossText(next)}${times}`);
  } else if (unit.options.length > 1) {
    parts.push("the strongest that is offered");
  }
  return parts.join("; ");
}

function whyDense(app, name) {
  const unit = app.units.get(name);
  if (!unit) {
    const reason = app.refused.get(name);
    return reason ? `not offered: ${reason}` : null;
  }
  const known = unit.options.filter((option) => option.loss !== null);
  if (!known.length) return null;
  const least = known.reduce((best, option) => (option.loss < best.loss ? option : best));
  return `dense: ${least.words} would lose ${lossText(least)}`;
}

function ordinal(number) {
  const tens = number % 100;
  const ending = tens > 10 && tens < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[number % 10] || "th";
  return `${number}${ending}`;
}
