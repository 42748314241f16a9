// Where cells are on the canvas, and how they are drawn. Lengths are CSS pixels.

const GUTTER = 26;
const NAMES = 19;
const COLUMN_BAND = 9;
const STRIP_GAP = 16;
const LEAST_CELL = 6;
const LEAST_SINGLE = 30;
const MOST_CELL = 46;

/** Columns of all strips from left to right, and rows from top to bottom, fitted to a width. */
export function fit(model, width) {
  const singles = model.strips.filter(({ units }) => units === 1).length;
  const heads = model.strips.reduce((sum, { units }) => sum + (units > 1 ? units : 0), 0);
  const room = width - GUTTER - STRIP_GAP * (model.strips.length - 1) - 1;
  // A projection without heads is as wide as two heads, and wide enough for its name.
  const wide = room / (heads + 2 * singles || 1);
  const narrow = heads ? (room - singles * LEAST_SINGLE) / heads : wide;
  const cell = Math.min(MOST_CELL, Math.max(LEAST_CELL, 2 * wide >= LEAST_SINGLE ? wide : narrow));
  const single = Math.max(2 * cell, LEAST_SINGLE);
  const row = rowHeight(model.layers);
  const columns = [];
  const strips = [];
  let left = GUTTER;
  model.strips.forEach(({ name, units }, strip) => {
    const first = columns.length;
    const each = units > 1 ? cell : single;
    for (let unit = 0; unit < units; unit += 1) {
      const x = Math.round(left + unit * each);
      columns.push({ strip, unit, x, width: Math.round(left + (unit + 1) * each) - x });
    }
    strips.push({ name, units, first, last: columns.length - 1, x: Math.round(left), width: Math.round(units * each) });
    left += units * each + STRIP_GAP;
  });
  const top = NAMES + COLUMN_BAND;
  return {
    columns,
    strips,
    top,
    row,
    gapX: cell >= 9 ? 2 : cell >= 5 ? 1 : 0,
    gapY: row >= 10 ? 2 : 1,
    numbers: cell >= 27 && row >= 14,
    width: Math.ceil(left - STRIP_GAP) + 1,
    height: gridHeight(model.layers),
  };
}

function rowHeight(layers) {
  return layers <= 12 ? 22 : layers <= 20 ? 17 : layers <= 32 ? 11 : layers <= 48 ? 8 : 6;
}

/** What a grid of so many layers will take, before the rest of the model is there. */
export function gridHeight(layers) {
  return NAMES + COLUMN_BAND + layers * rowHeight(layers) + 2;
}

/** What lies under a point: a cell, the head of a row, a column or a strip, or nothing. */
export function hit(layout, model, x, y) {
  const layer = Math.floor((y - layout.top) / layout.row);
  const inRows = layer >= 0 && layer < model.layers;
  if (x < GUTTER - 3) return inRows ? { part: "row", layer } : null;
  const column = columnAt(layout, x);
  if (y < NAMES && y >= 0) {
    const strip = layout.strips.findIndex((one) => x >= one.x && x < Math.max(one.x + one.width, one.x + 34));
    return strip < 0 ? null : { part: "strip", strip };
  }
  if (column < 0) return null;
  if (y < layout.top) return y < 0 ? null : { part: "column", column };
  return inRows ? { part: "cell", layer, column } : null;
}

function columnAt(layout, x) {
  let low = 0;
  let high = layout.columns.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (layout.columns[middle].x <= x) low = middle;
    else high = middle - 1;
  }
  const { x: left, width } = layout.columns[low];
  return x >= left && x < left + width ? low : -1;
}

/** 256 colours from low over middle to high. */
export function ramp(scale) {
  const [low, middle, high] = scale.map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const share = i / 255;
    const [from, to, part] = share < 0.5 ? [low, middle, 2 * share] : [middle, high, 2 * share - 1];
    const mixed = from.map((value, channel) => Math.round(value + (to[channel] - value) * part));
    return { fill: `rgb(${mixed.join(",")})`, ink: luminance(mixed) > 0.42 ? "#10151d" : "#ffffff" };
  });
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function luminance([red, green, blue]) {
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
}

/** Diagonal strokes for what stays dense. */
export function hatching(context, colour, scale) {
  const side = 6 * scale;
  const tile = document.createElement("canvas");
  tile.width = side;
  tile.height = side;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.3 * scale;
  for (const shift of [-side, 0, side]) {
    pen.beginPath();
    pen.moveTo(shift, side);
    pen.lineTo(shift + side, 0);
    pen.stroke();
  }
  const pattern = context.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / scale));
  return pattern;
}

/** Draws one cell over whatever was there. paints: {ramp, hatch, surface, mark}. */
export function drawCell(context, layout, paints, layer, column, kind, rank) {
  const { x, width } = layout.columns[column];
  const y = layout.top + layer * layout.row;
  const w = width - layout.gapX;
  const h = layout.row - layout.gapY;
  context.clearRect(x, y, width, layout.row);
  if (!kind) return;
  const colour = paints.ramp[rank === 0 ? 255 : Math.min(255, Math.max(0, Math.round((255 * rank) / kind.even)))];
  context.fillStyle = colour.fill;
  if (w >= 10 && h >= 10) {
    context.beginPath();
    context.roundRect(x, y, w, h, 2.5);
    context.fill();
  } else {
    context.fillRect(x, y, w, h);
  }
  if (rank === 0) {
    context.fillStyle = paints.hatch;
    context.fillRect(x, y, w, h);
    return;
  }
  if (isPadded(rank) && w >= 5 && h >= 4) {
    const side = Math.min(6, Math.max(3, Math.floor(Math.min(w, h) / 2.6)));
    context.fillStyle = paints.mark;
    context.beginPath();
    context.moveTo(x + w, y + h - side);
    context.lineTo(x + w, y + h);
    context.lineTo(x + w - side, y + h);
    context.fill();
  }
  if (layout.numbers) {
    context.fillStyle = colour.ink;
    context.font = paints.font;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(String(rank), x + w / 2, y + h / 2 + 0.5);
  }
}

/** Names of strips, numbers of layers, a bar over each column to take hold of. */
export function drawHeads(context, layout, model, paints) {
  context.clearRect(0, 0, layout.width, layout.top);
  context.clearRect(0, 0, GUTTER - 2, layout.height);
  context.textBaseline = "alphabetic";
  context.textAlign = "left";
  layout.strips.forEach(({ name, units, x, width }) => {
    context.fillStyle = paints.text;
    context.font = paints.bold;
    context.fillText(name, x, NAMES - 6);
    const named = context.measureText(name).width;
    const query = model.queryHeads;
    const words = units < query && units > 1 ? `${units} heads, each for ${query / units} of q →` : `${units} heads →`;
    context.font = paints.font;
    context.fillStyle = paints.muted;
    const said = [words, `${units} heads →`, "heads →"].find((one) => named + 8 + context.measureText(one).width <= width + STRIP_GAP - 6);
    if (units > 1 && said) context.fillText(said, x + named + 8, NAMES - 6);
  });
  context.fillStyle = paints.muted;
  context.globalAlpha = 0.3;
  layout.columns.forEach(({ x, width }) => context.fillRect(x, NAMES + 1, width - Math.max(1, layout.gapX), 4));
  context.globalAlpha = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.font = paints.font;
  const every = Math.ceil(12 / layout.row);
  for (let layer = 0; layer < model.layers; layer += 1) {
    if (layer === 0 || (layer + 1) % (every > 1 ? Math.max(every, 5) : 1) === 0) {
      context.fillText(String(layer + 1), GUTTER - 8, layout.top + (layer + 0.5) * layout.row - layout.gapY / 2);
    }
  }
}

/** Pixels of a rectangle of cells. */
export function boxOf(layout, { top, left, bottom, right }) {
  const first = layout.columns[left];
  const last = layout.columns[right];
  return {
    x: first.x - 1.5,
    y: layout.top + top * layout.row - 1.5,
    w: last.x + last.width - layout.gapX - first.x + 3,
    h: (bottom - top + 1) * layout.row - layout.gapY + 3,
  };
}
