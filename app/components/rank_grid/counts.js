// The plan as flat arrays, and every count that follows from it. No drawing, no page: tests run this under node.

const TILE = 16;
const TAIL_STEPS = 65535;

/** A model as the page hands it over (`rank_grid.model_data`), ready to count with. Ranks are numbers, 0 for dense. */
export function readModel(data) {
  const starts = data.kind.map(() => []);
  let units = 0;
  let tailAt = 0;
  const kinds = [];
  const tailStart = [];
  data.kind.forEach((row, layer) => {
    row.forEach((number, strip) => {
      starts[layer].push(units);
      if (number < 0) return;
      const kind = data.kinds[number];
      for (let unit = 0; unit < kind.units; unit += 1) {
        kinds.push(kind);
        if (data.tails) {
          tailStart.push(tailAt);
          tailAt += data.tails.knots[kind.full].length;
        }
        units += 1;
      }
    });
  });
  return {
    ...data,
    starts,
    unitCount: units,
    unitKinds: kinds,
    layers: data.kind.length,
    denseParameters: kinds.reduce((sum, kind) => sum + kind.dense, 0),
    tailStart,
    tailValues: data.tails ? decode16(data.tails.values) : null,
  };
}

function decode16(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < values.length; i += 1) values[i] = view.getUint16(2 * i, true);
  return values;
}

/** The kind of a cell, or null where this layer lacks the projection or the projection has fewer units. */
export function kindAt(model, layer, strip, unit) {
  const number = model.kind[layer]?.[strip] ?? -1;
  const kind = number < 0 ? null : model.kinds[number];
  return kind && unit >= 0 && unit < kind.units ? kind : null;
}

export function indexOf(model, layer, strip, unit) {
  return model.starts[layer][strip] + unit;
}

/** [first layer, one past the last] that have one rank with this one. */
export function groupOf(model, layer, strip) {
  return model.groups.find(([at, start, stop]) => at === strip && start <= layer && layer < stop)?.slice(1) ?? [layer, layer + 1];
}

/** Ranks from runs of (rank, how many). */
export function readRanks(runs, count) {
  const ranks = new Int32Array(count);
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) {
    ranks.fill(runs[i], at, at + runs[i + 1]);
    at += runs[i + 1];
  }
  return ranks;
}

/** 0 (dense) at or above break-even. */
export function snap(kind, rank) {
  return rank === 0 || rank >= kind.even ? 0 : Math.max(1, rank);
}

/** The rank some tiles up or down, as `flashsvd.plan_edits.step_rank`. */
export function stepRank(kind, rank, steps) {
  const tile = kind.tile;
  let now = rank;
  for (let turn = 0; turn < Math.abs(steps); turn += 1) {
    if (steps > 0) {
      const above = now === 0 ? 0 : (Math.floor(now / tile) + 1) * tile;
      now = above >= kind.even ? 0 : above;
    } else {
      const below = now === 0 ? Math.ceil(kind.even / tile) - 1 : Math.ceil(now / tile) - 1;
      now = Math.max(1, below * tile);
    }
  }
  return now;
}

export function isPadded(rank) {
  return rank % TILE !== 0;
}

/** What a brush makes of a rank: {set: rank or 0} or {step: tiles}. */
export function brushed(kind, rank, brush) {
  return brush.step === undefined ? snap(kind, Math.min(brush.set, kind.full)) : stepRank(kind, rank, brush.step);
}

/** Share of the unit's squared singular values beyond a rank: straight lines between knots. */
export function tailOf(model, index, rank) {
  if (rank === 0) return 0;
  const knots = model.tails.knots[model.unitKinds[index].full];
  let low = 0;
  let high = knots.length - 1;
  if (rank >= knots[high]) return 0;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (knots[middle] <= rank) low = middle;
    else high = middle;
  }
  const start = model.tailStart[index];
  const left = model.tailValues[start + low];
  const right = model.tailValues[start + high];
  return (left + ((right - left) * (rank - knots[low])) / (knots[high] - knots[low])) / TAIL_STEPS;
}

/** Parameters kept of the factored linears, of the whole model (null if not known), bytes, energy cut off (or null). */
export function counts(model, ranks) {
  let kept = 0;
  let cut = 0;
  let dense = 0;
  for (let i = 0; i < model.unitCount; i += 1) {
    const kind = model.unitKinds[i];
    const rank = ranks[i];
    kept += rank === 0 ? kind.dense : rank * kind.each;
    if (rank === 0) dense += 1;
    else if (model.tails) cut += model.tails.totals[i] * tailOf(model, i, rank);
  }
  kept = Math.round(kept);
  const whole = model.rest === null ? null : model.rest + kept;
  return {
    kept,
    keep: kept / model.denseParameters,
    whole,
    bytes: (whole ?? kept) * model.bytesEach,
    cut: model.tails ? cut : null,
    denseUnits: dense,
  };
}

/** What changed, as the page wants it: [layer, projection, first unit, last unit, rank or null for dense]. */
export function editsBetween(model, before, after) {
  const edits = [];
  model.kind.forEach((row, layer) => {
    row.forEach((number, strip) => {
      if (number < 0) return;
      const start = model.starts[layer][strip];
      let open = null;
      for (let unit = 0; unit < model.kinds[number].units; unit += 1) {
        const rank = after[start + unit];
        if (before[start + unit] === rank) {
          open = null;
        } else if (open && open[4] === (rank || null)) {
          open[3] = unit;
        } else {
          open = [layer, model.strips[strip].name, unit, unit, rank || null];
          edits.push(open);
        }
      }
    });
  });
  return edits;
}

/** Makes edits in place. */
export function applyEdits(model, ranks, edits) {
  edits.forEach(([layer, name, first, last, rank]) => {
    const strip = model.strips.findIndex((one) => one.name === name);
    if (strip < 0 || !kindAt(model, layer, strip, first)) return;
    const [from, to] = groupOf(model, layer, strip);
    for (let at = from; at < to; at += 1) {
      const start = model.starts[at][strip];
      for (let unit = first; unit <= last; unit += 1) ranks[start + unit] = snap(model.unitKinds[start + unit], rank ?? 0);
    }
  });
}

/** "2.34 M", as `app.words.count`. */
export function countWords(parameters) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (parameters >= size) {
      const value = parameters / size;
      return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
    }
  }
  return `${parameters}`;
}

/** "49.6 %", as `app.words.percent`. */
export function percentWords(share) {
  return `${(100 * share).toFixed(1).replace(/\.0$/, "")} %`;
}

/** "13.5 MiB", as `flashsvd.errors.format_bytes`. */
export function byteWords(bytes) {
  let size = bytes;
  let unit = "B";
  for (const next of ["KiB", "MiB", "GiB", "TiB"]) {
    if (size < 1024) break;
    size /= 1024;
    unit = next;
  }
  return `${size.toFixed(size >= 100 || Number.isInteger(size) ? 0 : 1)} ${unit}`;
}

/** A cell in words; layers and heads count from 1. */
export function cellWords(model, ranks, layer, strip, unit) {
  const kind = kindAt(model, layer, strip, unit);
  if (!kind) return "";
  const rank = ranks[indexOf(model, layer, strip, unit)];
  const head = kind.units > 1 ? `, head ${unit + 1}` : "";
  return `layer ${layer + 1}, ${model.strips[strip].name}${head}: ${rank === 0 ? "dense" : `rank ${rank}`}`;
}

/** The same with what a person who looks at it wants to know. */
export function cellDetail(model, ranks, layer, strip, unit) {
  const kind = kindAt(model, layer, strip, unit);
  if (!kind) return "";
  const index = indexOf(model, layer, strip, unit);
  const rank = ranks[index];
  const parts = [cellWords(model, ranks, layer, strip, unit)];
  if (rank) parts.push(`${Math.round((100 * rank) / kind.even)} % of break-even ${kind.even.toFixed(1)}`);
  else parts.push(`break-even ${kind.even.toFixed(1)}`);
  if (rank && isPadded(rank)) parts.push(`the kernel pads it to ${Math.ceil(rank / TILE) * TILE}`);
  if (model.tails && rank) parts.push(`cuts ${percentWords(tailOf(model, index, rank))} of its energy`);
  const [from, to] = groupOf(model, layer, strip);
  if (to - from > 1) parts.push(`one basis for layers ${from + 1} to ${to}`);
  const per = model.queryHeads && kind.units > 1 && kind.units < model.queryHeads ? model.queryHeads / kind.units : 1;
  if (per > 1) parts.push(`for query heads ${unit * per + 1} to ${(unit + 1) * per}`);
  return parts.join(" · ");
}

/** A rectangle's ranks as lines of tab-separated words; empty where there is no cell. */
export function copyText(model, ranks, columns, box) {
  const lines = [];
  for (let layer = box.top; layer <= box.bottom; layer += 1) {
    const words = [];
    for (let column = box.left; column <= box.right; column += 1) {
      const { strip, unit } = columns[column];
      const kind = kindAt(model, layer, strip, unit);
      const rank = kind ? ranks[indexOf(model, layer, strip, unit)] : -1;
      words.push(rank < 0 ? "" : rank === 0 ? "dense" : String(rank));
    }
    lines.push(words.join("\t"));
  }
  return lines.join("\n");
}

/** Rows of ranks from pasted text, null for an empty cell; null where it is no such text. */
export function readPaste(text) {
  const lines = text.replace(/\r/g, "").replace(/\n+$/, "").split("\n");
  if (lines.length > 1000) return null;
  const rows = [];
  for (const line of lines) {
    const row = [];
    for (const word of line.split("\t").map((one) => one.trim())) {
      if (word === "") row.push(null);
      else if (word === "dense") row.push(0);
      else if (/^[0-9]{1,7}$/.test(word) && Number(word) > 0) row.push(Number(word));
      else return null;
    }
    rows.push(row);
  }
  return rows.some((row) => row.some((rank) => rank !== null)) ? rows : null;
}
