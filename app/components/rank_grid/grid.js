// The component: pointer, keys and clipboard on the canvas, and one message to the page per gesture.

const models = new Map();
const grids = new WeakMap();
const waiting = new Set();
const WHEEL_PIXELS = 30;
const BURST_MS = 300;
const AGAIN_MS = 4000;
const MOST_MODELS = 4;
let gestureNumber = 0;
let tool = "paint";
let brushRank = 32;

export default function mount({ data, parentElement, setTriggerValue }) {
  if (!data) return undefined;
  if (!data.plan) {
    keepModel(data.model);
    return undefined;
  }
  let grid = grids.get(parentElement);
  if (!grid) {
    grid = new Grid(parentElement);
    grids.set(parentElement, grid);
  }
  grid.tell = (value) => setTriggerValue("gesture", value);
  grid.take(data.model, data.plan);
  return () => grid.close();
}

function keepModel(data) {
  if (models.has(data.id)) return;
  models.set(data.id, readModel(data));
  if (models.size > MOST_MODELS) models.delete(models.keys().next().value);
  waiting.forEach((grid) => grid.take(grid.wanted, grid.plan));
}

class Grid {
  constructor(root) {
    const find = (selector) => root.querySelector(selector);
    Object.assign(this, {
      root,
      cells: find(".cells"),
      top: find(".top"),
      scroller: find(".scroll"),
      paper: find(".paper"),
      typed: find(".type"),
      live: find(".live"),
      dense: find(".dense"),
      hint: find(".hint"),
      said: find(".said"),
      rankBox: find(".rank"),
      model: null,
      pending: [],
      cursor: { layer: 0, column: 0 },
      selection: null,
      drag: null,
      burst: null,
      hover: null,
      fingers: new Map(),
      tap: null,
      need: {},
      clip: null,
    });
    this.pen = this.cells.getContext("2d");
    this.overPen = this.top.getContext("2d");
    this.listen();
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(this.scroller);
    this.showTool();
  }

  close() {
    this.endBurst();
    clearTimeout(this.again);
    clearTimeout(this.looking);
    this.resized.disconnect();
    waiting.delete(this);
    grids.delete(this.root);
    this.stopped = true;
  }

  // What the page says

  take(id, plan) {
    this.wanted = id;
    this.plan = plan;
    const model = models.get(id);
    this.paper.style.minHeight = `${gridHeight(plan.layers)}px`;
    if (!model) {
      waiting.add(this);
      return;
    }
    waiting.delete(this);
    const known = this.model === model;
    if (!known) {
      if (!this.model || !sameCells(this.model, model)) {
        this.pending = [];
        this.selection = null;
        this.drag = null;
        this.cursor = { layer: 0, column: 0 };
      }
      this.model = model;
      this.layout = null;
    }
    this.pending = this.pending.filter((one) => one.n > plan.seen);
    gestureNumber = Math.max(gestureNumber, plan.seen);
    // A message that did not arrive, as when a connection was lost: said again with what is still open.
    clearTimeout(this.again);
    if (this.pending.length) this.again = setTimeout(() => this.pending.length && this.sendPending(), AGAIN_MS);
    const ranks = readRanks(plan.ranks, model.unitCount);
    this.pending.forEach((one) => one.edits && applyEdits(model, ranks, one.edits));
    const open = this.drag?.base ? this.drag : this.burst;
    if (open) {
      const mine = editsBetween(model, open.base, this.ranks);
      open.base = ranks.slice();
      applyEdits(model, ranks, mine);
    }
    this.ranks = ranks;
    const at = plan.at.join();
    // An answer to an earlier message knows nothing of where the cursor went since.
    const late = this.pending.length || this.looking;
    if (at !== this.lastAt && !this.drag && !this.burst && !late) {
      this.lastAt = at;
      const column = this.columnOf(plan.at[1], plan.at[2]);
      if (column >= 0) this.cursor = { layer: plan.at[0], column };
    }
    const look = JSON.stringify(plan.colours);
    if (look !== this.look) {
      this.look = look;
      this.layout = null;
    }
    if (this.layout) this.draw({ cells: true, over: true });
    else this.fit();
  }

  columnOf(strip, unit) {
    if (this.layout) return this.layout.columns.findIndex((one) => one.strip === strip && one.unit === unit);
    return this.model.strips.slice(0, strip).reduce((sum, one) => sum + one.units, 0) + unit;
  }

  fit() {
    const width = this.scroller.clientWidth;
    if (!this.model || !width) return;
    const layout = fit(this.model, width);
    const scale = window.devicePixelRatio || 1;
    const drawn = this.layout && this.drawn && scale === this.scale;
    if (drawn && this.layout.width === layout.width && this.layout.height === layout.height && this.layoutWidth === width) return;
    this.layoutWidth = width;
    this.layout = layout;
    this.scale = scale;
    for (const canvas of [this.cells, this.top]) {
      canvas.width = Math.ceil(layout.width * scale);
      canvas.height = Math.ceil(layout.height * scale);
      canvas.style.width = `${layout.width}px`;
      canvas.style.height = `${layout.height}px`;
      canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
    }
    this.paper.style.width = `${layout.width}px`;
    const { colours } = this.plan;
    const family = getComputedStyle(this.top).fontFamily;
    this.paints = {
      ramp: ramp(colours.scale),
      hatch: hatching(this.pen, colours.surface, scale),
      surface: colours.surface,
      mark: colours.mark,
      text: colours.text,
      muted: colours.muted,
      font: `11px ${family}`,
      bold: `650 12px ${family}`,
    };
    this.root.querySelector(".rg").style.setProperty("--rg-muted", colours.muted);
    this.root.querySelector(".key .scale").style.background = `linear-gradient(90deg, ${colours.scale.join(", ")})`;
    this.root.querySelector(".key .hatch").style.background =
      `repeating-linear-gradient(135deg, ${colours.surface} 0 1px, ${colours.scale[2]} 1px 4px)`;
    this.root.querySelector(".key .pad").style.background =
      `linear-gradient(135deg, ${colours.scale[1]} 62%, ${colours.mark} 62%)`;
    this.drawn = null;
    this.drawNow({ heads: true, cells: true, over: true });
  }

  // Drawing: once per frame, only what changed

  draw(what) {
    Object.assign(this.need, what);
    if (this.frame || this.stopped) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const need = this.need;
      this.need = {};
      if (!this.stopped) this.drawNow(need);
    });
  }

  drawNow(need) {
    const { model, layout, ranks } = this;
    if (!layout) return;
    const started = performance.now();
    if (need.heads) drawHeads(this.pen, layout, model, this.paints);
    if (need.cells) {
      const before = this.drawn;
      layout.columns.forEach(({ strip, unit }, column) => {
        for (let layer = 0; layer < model.layers; layer += 1) {
          const kind = kindAt(model, layer, strip, unit);
          if (!kind) continue;
          const index = model.starts[layer][strip] + unit;
          if (!before || before[index] !== ranks[index]) {
            drawCell(this.pen, layout, this.paints, layer, column, kind, ranks[index]);
          }
        }
      });
      this.drawn = ranks.slice();
      this.showCounts();
    }
    if (need.over || need.cells) this.drawOver();
    performance.measure("rank-grid-draw", { start: started, end: performance.now() });
  }

  drawOver() {
    const { overPen: pen, layout, paints } = this;
    pen.clearRect(0, 0, layout.width, layout.height);
    const outline = (box, line, colour) => {
      const { x, y, w, h } = boxOf(layout, box);
      pen.lineWidth = line;
      pen.strokeStyle = colour;
      pen.strokeRect(x, y, w, h);
    };
    if (this.hover) outline(one(this.hover), 1, paints.muted);
    const focused = this.root.activeElement === this.top;
    outline(one(this.cursor), focused ? 2.5 : 1.5, paints.mark);
    if (this.selection) {
      const { x, y, w, h } = boxOf(layout, this.selection);
      pen.globalAlpha = 0.14;
      pen.fillStyle = paints.mark;
      pen.fillRect(x, y, w, h);
      pen.globalAlpha = 1;
      outline(this.selection, 2, paints.mark);
    }
    this.showHint();
  }

  showCounts() {
    const { model } = this;
    const now = counts(model, this.ranks);
    const parts = [`<i>PREDICTED</i> <b>${percentWords(now.keep)}</b> kept, ${countWords(now.kept)} of ${countWords(model.denseParameters)}`];
    parts.push(`<b>${byteWords(now.bytes)}</b> ${now.whole === null ? "factored" : "of weights"}`);
    if (now.cut !== null) parts.push(`<b>${percentWords(now.cut)}</b> of σ² cut off`);
    this.dense.textContent = `${now.denseUnits} of ${model.unitCount} dense`;
    // Numbers and fixed words only: nothing that came from outside.
    this.live.innerHTML = parts.join(" · ");
  }

  showHint() {
    const at = this.hover ?? (this.root.activeElement === this.top ? this.cursor : null);
    const words = at && this.detail(at);
    const finger = matchMedia("(pointer: coarse)").matches;
    if (finger && words && this.root.activeElement === this.top) {
      this.hint.textContent = `${words} · drag to paint, two fingers scroll`;
      return;
    }
    this.hint.textContent =
      words ||
      (finger
        ? "tap to paint, a layer or a name for all of it; from then on drag"
        : "drag to paint · heads of rows and columns paint all of it · Shift+drag selects · Alt+↑↓ or wheel: a tile of 16");
  }

  detail({ layer, column }) {
    const { strip, unit } = this.layout.columns[column];
    return cellDetail(this.model, this.ranks, layer, strip, unit);
  }

  say() {
    const { strip, unit } = this.layout.columns[this.cursor.column];
    const box = this.selection;
    const many = box && (box.bottom > box.top || box.right > box.left);
    const size = many ? `${box.bottom - box.top + 1} by ${box.right - box.left + 1} selected, ` : "";
    this.said.textContent = size + cellWords(this.model, this.ranks, this.cursor.layer, strip, unit);
  }

  showTool() {
    this.root.querySelectorAll("[data-tool]").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    });
    if (this.root.activeElement !== this.rankBox) this.rankBox.value = String(brushRank);
  }

  // Changing ranks

  brush() {
    return { paint: { set: brushRank }, down: { step: -1 }, up: { step: 1 }, dense: { set: 0 } }[tool];
  }

  /** Applies a brush to a cell, once per gesture; to all layers that share its factor. */
  touch(gesture, layer, column, brush) {
    const { model } = this;
    const { strip, unit } = this.layout.columns[column];
    const kind = kindAt(model, layer, strip, unit);
    if (!kind) return;
    const [from, to] = groupOf(model, layer, strip);
    const first = indexOf(model, from, strip, unit);
    if (gesture.touched?.has(first)) return;
    gesture.touched?.add(first);
    const rank = brushed(kind, this.ranks[first], brush);
    for (let at = from; at < to; at += 1) this.ranks[indexOf(model, at, strip, unit)] = rank;
  }

  touchBox(gesture, box, brush) {
    // In one turn each group of layers is touched once, however many of its layers are in the box.
    const turn = { touched: new Set() };
    for (let layer = box.top; layer <= box.bottom; layer += 1) {
      for (let column = box.left; column <= box.right; column += 1) this.touch(turn, layer, column, brush);
    }
    this.draw({ cells: true });
  }

  /** Ends a gesture: what it changed goes to the page, as one message. */
  commit(base) {
    const edits = editsBetween(this.model, base, this.ranks);
    this.send(edits.length ? { do: "edit", edits } : { do: "look" });
    this.say();
  }

  send(gesture) {
    gestureNumber += 1;
    this.pending = this.pending.filter((one) => one.do !== "look");
    this.pending.push({ n: gestureNumber, ...gesture });
    this.sendPending();
  }

  sendPending() {
    if (this.stopped) return;
    const { strip, unit } = this.layout.columns[this.cursor.column];
    const at = kindAt(this.model, this.cursor.layer, strip, unit)
      ? [this.cursor.layer, this.model.strips[strip].name, unit]
      : null;
    if (at) this.lastAt = [this.cursor.layer, strip, unit].join();
    this.tell({ model: this.model.id, gestures: this.pending, at });
  }

  /** Key presses and wheel steps that follow at once are one gesture. */
  inBurst(change) {
    if (!this.burst) {
      this.burst = { base: this.ranks.slice() };
      performance.clearMeasures("rank-grid-draw");
    }
    clearTimeout(this.burst.timer);
    change(this.burst);
    this.say();
    this.burst.timer = setTimeout(() => this.endBurst(), BURST_MS);
  }

  endBurst() {
    if (!this.burst) return;
    const { base, timer } = this.burst;
    clearTimeout(timer);
    this.burst = null;
    this.commit(base);
  }

  target() {
    return this.selection ?? one(this.cursor);
  }

  /** One change of the selection, or of the cell under the cursor. */
  change(make) {
    this.endBurst();
    const base = this.ranks.slice();
    make();
    this.draw({ cells: true });
    this.commit(base);
  }

  /** The grid as a file: the cells on the page's paper, without cursor and selection. */
  save() {
    const picture = document.createElement("canvas");
    picture.width = this.cells.width;
    picture.height = this.cells.height;
    const pen = picture.getContext("2d");
    pen.fillStyle = this.paints.surface;
    pen.fillRect(0, 0, picture.width, picture.height);
    pen.drawImage(this.cells, 0, 0);
    picture.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "ranks.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  // Pointer

  listen() {
    const { top } = this;
    top.addEventListener("pointerdown", (event) => this.press(event));
    top.addEventListener("pointermove", (event) => this.move(event));
    top.addEventListener("pointerup", (event) => this.release(event));
    top.addEventListener("pointercancel", (event) => {
      this.fingers.delete(event.pointerId);
      this.tap = null;
      this.cancel();
    });
    top.addEventListener("pointerleave", () => {
      this.hover = null;
      if (this.layout) this.draw({ over: true });
    });
    top.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    top.addEventListener("keydown", (event) => this.key(event));
    top.addEventListener("copy", (event) => this.copy(event));
    top.addEventListener("paste", (event) => this.paste(event));
    for (const name of ["focus", "blur"]) {
      top.addEventListener(name, () => {
        if (name === "blur") this.endBurst();
        if (this.layout) this.draw({ over: true });
      });
    }
    this.root.querySelectorAll("[data-tool]").forEach((button) => {
      button.addEventListener("click", () => {
        tool = button.dataset.tool;
        this.showTool();
        // Who picks a brush with a finger is about to paint.
        if (matchMedia("(pointer: coarse)").matches) this.top.focus({ preventScroll: true });
      });
    });
    this.rankBox.addEventListener("input", () => {
      const rank = Math.floor(Number(this.rankBox.value));
      if (rank >= 1) brushRank = rank;
      tool = "paint";
      this.showTool();
    });
    this.rankBox.addEventListener("blur", () => this.showTool());
    this.rankBox.addEventListener("keydown", (event) => event.stopPropagation());
    this.typed.addEventListener("keydown", (event) => this.typedKey(event));
    this.typed.addEventListener("blur", () => this.closeTyped());
    this.root.querySelector(".png").addEventListener("click", () => this.save());
    const copy = this.root.querySelector(".copy");
    copy.addEventListener("click", async () => {
      let done = "Copied";
      try {
        await navigator.clipboard.writeText(this.plan.text);
      } catch {
        done = "Not allowed";
      }
      copy.textContent = done;
      setTimeout(() => (copy.textContent = "Copy plan"), 1200);
    });
  }

  where(event) {
    const box = this.top.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** A finger paints while the grid has the focus, which a tap gives it; before that it scrolls the page. */
  press(event) {
    if (event.button !== 0 || !this.layout) return;
    if (event.pointerType === "touch") {
      this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.fingers.size > 1) {
        this.tap = null;
        this.cancel();
        return;
      }
      if (this.root.activeElement !== this.top) {
        this.tap = event;
        return;
      }
    }
    this.begin(event);
    if (this.drag) this.top.setPointerCapture(event.pointerId);
  }

  begin(event) {
    const [x, y] = this.where(event);
    const found = hit(this.layout, this.model, x, y);
    this.endBurst();
    this.closeTyped();
    if (!found) return;
    this.top.focus({ preventScroll: true });
    if (event.altKey && found.part === "cell") {
      this.pick(found);
      return;
    }
    performance.clearMeasures("rank-grid-draw");
    const box = this.boxOf(found);
    if (tool === "select" || event.shiftKey) {
      this.drag = { selecting: true, part: found.part, from: box, click: true, extend: event.shiftKey };
      if (!(event.shiftKey && found.part === "cell")) this.cursor = { layer: box.top, column: box.left };
      this.selection = found.part === "cell" ? this.selection : box;
      this.draw({ over: true });
      return;
    }
    const fill = this.selection && found.part === "cell" && inside(this.selection, found);
    if (!fill) this.selection = null;
    const last = fill ? found : { layer: box.top, column: box.left };
    this.drag = { base: this.ranks.slice(), touched: new Set(), part: found.part, x, y, fill };
    this.cursor = { layer: last.layer, column: last.column };
    if (fill) this.touchBox(this.drag, this.selection, this.brush());
    else this.touchFound(found);
    this.draw({ cells: true, over: true });
  }

  boxOf(found) {
    const last = { layer: this.model.layers - 1, column: this.layout.columns.length - 1 };
    if (found.part === "row") return { top: found.layer, bottom: found.layer, left: 0, right: last.column };
    if (found.part === "column") return { top: 0, bottom: last.layer, left: found.column, right: found.column };
    if (found.part === "strip") {
      const { first, last: end } = this.layout.strips[found.strip];
      return { top: 0, bottom: last.layer, left: first, right: end };
    }
    return one(found);
  }

  touchFound(found) {
    const box = this.boxOf(found);
    const brush = this.brush();
    for (let layer = box.top; layer <= box.bottom; layer += 1) {
      for (let column = box.left; column <= box.right; column += 1) this.touch(this.drag, layer, column, brush);
    }
  }

  move(event) {
    if (!this.layout || (event.pointerType === "touch" && !this.paintsWith(event))) return;
    const [x, y] = this.where(event);
    const found = hit(this.layout, this.model, x, y);
    const { drag } = this;
    if (!drag) {
      const hover = found?.part === "cell" ? { layer: found.layer, column: found.column } : null;
      if (hover?.layer !== this.hover?.layer || hover?.column !== this.hover?.column) {
        this.hover = hover;
        this.draw({ over: true });
      }
      return;
    }
    if (drag.selecting) {
      this.selectTo(this.nearest(drag.part, x, y));
      return;
    }
    if (drag.fill) return;
    // A fast pointer leaves out cells: walk the line from where it was.
    const points = event.getCoalescedEvents?.() ?? [];
    for (const point of points.length ? points : [event]) this.walkTo(...this.where(point));
    this.hover = null;
    this.draw({ cells: true, over: true });
  }

  /** Whether a finger that moved is one that paints; two of them move the page instead. */
  paintsWith(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return false;
    if (this.fingers.size > 1) {
      const share = 1 / this.fingers.size;
      this.scroller.scrollLeft -= (event.clientX - before[0]) * share;
      const page = scrollerOf(this.scroller);
      if (page) page.scrollTop -= (event.clientY - before[1]) * share;
    }
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    return this.fingers.size === 1 && Boolean(this.drag);
  }

  walkTo(x, y) {
    const { drag, layout } = this;
    const pace = Math.max(2, Math.min(layout.row, layout.columns[0].width) / 2);
    const steps = Math.min(2000, Math.max(1, Math.ceil(Math.hypot(x - drag.x, y - drag.y) / pace)));
    for (let step = 1; step <= steps; step += 1) {
      const px = drag.x + ((x - drag.x) * step) / steps;
      const py = drag.y + ((y - drag.y) * step) / steps;
      const found = hit(layout, this.model, px, py);
      if (!found || found.part !== drag.part) continue;
      this.touchFound(found);
      const box = this.boxOf(found);
      this.cursor = { layer: box.top, column: box.left };
    }
    drag.x = x;
    drag.y = y;
  }

  /** The nearest row, column, strip or cell to a point, for a selection that runs over the edge. */
  nearest(part, x, y) {
    const { layout, model } = this;
    const layer = Math.min(model.layers - 1, Math.max(0, Math.floor((y - layout.top) / layout.row)));
    let column = layout.columns.length - 1;
    while (column > 0 && layout.columns[column].x > x) column -= 1;
    if (part === "strip") return this.boxOf({ part, strip: layout.columns[column].strip });
    return this.boxOf({ part, layer, column });
  }

  selectTo(box) {
    const { from } = this.drag;
    const selection = joined(from, box);
    if (this.drag.part === "cell" && this.drag.click && selection.top === selection.bottom && selection.left === selection.right) return;
    this.drag.click = false;
    if (this.drag.part === "cell") this.cursor = { layer: from.top, column: from.left };
    this.selection = selection;
    this.draw({ over: true });
  }

  release(event) {
    this.fingers.delete(event.pointerId);
    if (this.tap) {
      const { tap } = this;
      this.tap = null;
      this.begin(tap);
    }
    const { drag } = this;
    if (!drag) return;
    this.drag = null;
    if (drag.selecting) {
      if (drag.part === "cell" && drag.click) {
        this.selection = drag.extend ? joined(one(this.cursor), drag.from) : null;
        if (!drag.extend) this.cursor = { layer: drag.from.top, column: drag.from.left };
      }
      this.draw({ over: true });
      this.say();
      this.send({ do: "look" });
      return;
    }
    this.commit(drag.base);
    this.draw({ over: true });
  }

  cancel() {
    const open = this.drag ?? this.burst;
    if (!open) return false;
    clearTimeout(this.burst?.timer);
    if (open.base) this.ranks = open.base;
    if (open.selecting) this.selection = null;
    this.drag = null;
    this.burst = null;
    this.draw({ cells: true, over: true });
    this.said.textContent = "cancelled";
    return true;
  }

  pick({ layer, column }) {
    const { strip, unit } = this.layout.columns[column];
    if (!kindAt(this.model, layer, strip, unit)) return;
    const rank = this.ranks[indexOf(this.model, layer, strip, unit)];
    tool = rank ? "paint" : "dense";
    if (rank) brushRank = rank;
    this.showTool();
  }

  /** Steps what is selected while the pointer is over it; anywhere else the page scrolls. */
  wheel(event) {
    if (!this.layout || this.root.activeElement !== this.top || event.ctrlKey) return;
    const found = hit(this.layout, this.model, ...this.where(event));
    if (found?.part !== "cell" || !inside(this.target(), found)) return;
    event.preventDefault();
    this.wheeled = (this.wheeled ?? 0) - event.deltaY * (event.deltaMode ? WHEEL_PIXELS : 1);
    const steps = Math.trunc(this.wheeled / WHEEL_PIXELS);
    if (!steps) return;
    this.wheeled = 0;
    this.inBurst((burst) => this.touchBox(burst, this.target(), { step: Math.sign(steps) }));
  }

  // Keys

  key(event) {
    if (event.key === "Tab" || !this.layout) return;
    const command = event.ctrlKey || event.metaKey;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const done = () => {
      event.preventDefault();
      event.stopPropagation();
    };
    // Copy and paste come as events of their own; other letters must not reach the page's shortcuts.
    if (command && (name === "c" || name === "v")) {
      event.stopPropagation();
      return;
    }
    if (command && name === "z") {
      done();
      if (!this.cancel()) this.history(event.shiftKey ? "redo" : "undo");
    } else if (command && name === "y") {
      done();
      this.history("redo");
    } else if (command && name === "a") {
      done();
      this.selection = this.boxOf({ part: "strip", strip: this.layout.columns[this.cursor.column].strip });
      this.draw({ over: true });
      this.say();
    } else if (command) {
      return;
    } else if (event.altKey && (name === "ArrowUp" || name === "ArrowDown")) {
      done();
      this.inBurst((burst) => this.touchBox(burst, this.target(), { step: name === "ArrowUp" ? 1 : -1 }));
    } else if (["+", "=", "-", "_"].includes(name)) {
      done();
      this.inBurst((burst) => this.touchBox(burst, this.target(), { step: name === "+" || name === "=" ? 1 : -1 }));
    } else if (name.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(name)) {
      done();
      this.go(name, event.shiftKey);
    } else if (name === "Escape") {
      done();
      if (!this.cancel()) this.selection = null;
      this.draw({ over: true });
    } else if (name === "Enter" || /^[0-9]$/.test(name)) {
      done();
      this.openTyped(name === "Enter" ? "" : name);
    } else if (name === "d" || name === "Delete") {
      done();
      this.change(() => this.touchBox({}, this.target(), { set: 0 }));
    } else if (name === " ") {
      done();
      if (this.brush()) this.change(() => this.touchBox({}, this.target(), this.brush()));
    } else {
      event.stopPropagation();
    }
  }

  go(name, selecting) {
    this.endBurst();
    const { layers } = this.model;
    const columns = this.layout.columns.length;
    const was = this.cursor;
    const [down, right] = {
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      PageUp: [-layers, 0],
      PageDown: [layers, 0],
      Home: [0, -columns],
      End: [0, columns],
    }[name];
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    if (selecting) {
      this.anchor ??= was;
      this.ahead = {
        layer: clamp((this.ahead ?? was).layer + down, layers - 1),
        column: clamp((this.ahead ?? was).column + right, columns - 1),
      };
      this.selection = joined(one(this.anchor), one(this.ahead));
    } else {
      this.selection = null;
      this.anchor = null;
      this.ahead = null;
      this.cursor = { layer: clamp(was.layer + down, layers - 1), column: clamp(was.column + right, columns - 1) };
      clearTimeout(this.looking);
      this.looking = setTimeout(() => {
        this.looking = 0;
        if (!this.stopped && !this.drag && !this.burst) this.send({ do: "look" });
      }, BURST_MS);
    }
    this.intoView();
    this.draw({ over: true });
    this.say();
  }

  intoView() {
    const { x, w } = boxOf(this.layout, one(this.ahead ?? this.cursor));
    const { scrollLeft, clientWidth } = this.scroller;
    if (x < scrollLeft + GUTTER) this.scroller.scrollLeft = x - GUTTER;
    else if (x + w > scrollLeft + clientWidth) this.scroller.scrollLeft = x + w - clientWidth + 8;
  }

  history(what) {
    this.endBurst();
    this.said.textContent = this.plan[what] || this.pending.length ? what : `nothing to ${what}`;
    if (this.plan[what] || this.pending.length) this.send({ do: what });
  }

  openTyped(text) {
    this.endBurst();
    const { x, y, h } = boxOf(this.layout, one(this.cursor));
    const { typed } = this;
    typed.hidden = false;
    typed.value = text;
    typed.classList.remove("wrong");
    typed.style.left = `${Math.max(0, Math.min(x, this.layout.width - 60))}px`;
    typed.style.top = `${Math.max(0, Math.min(y + h / 2 - 12, this.layout.height - 26))}px`;
    typed.placeholder = "rank";
    typed.focus({ preventScroll: true });
  }

  typedKey(event) {
    event.stopPropagation();
    if (event.key === "Escape") {
      this.closeTyped(true);
    } else if (event.key === "Enter") {
      const word = this.typed.value.trim().toLowerCase();
      const dense = word === "dense" || word === "d";
      if (!dense && !(/^[0-9]{1,7}$/.test(word) && Number(word) > 0)) {
        this.typed.classList.add("wrong");
        this.said.textContent = "type a rank from 1 on, or dense";
        return;
      }
      this.change(() => this.touchBox({}, this.target(), { set: dense ? 0 : Number(word) }));
      this.closeTyped(true);
    }
  }

  closeTyped(back = false) {
    if (this.typed.hidden) return;
    this.typed.hidden = true;
    if (back) this.top.focus({ preventScroll: true });
  }

  copy(event) {
    const box = this.target();
    event.clipboardData.setData("text/plain", copyText(this.model, this.ranks, this.layout.columns, box));
    event.preventDefault();
    this.said.textContent = `copied ${(box.bottom - box.top + 1) * (box.right - box.left + 1)} ranks`;
  }

  /** Pastes at the selection's corner; a selection that holds the copy several times is filled with it. */
  paste(event) {
    event.preventDefault();
    const rows = readPaste(event.clipboardData.getData("text/plain"));
    if (!rows) {
      this.said.textContent = "the clipboard holds no ranks";
      this.hint.textContent = "The clipboard holds no ranks: copy some from the grid, or numbers from a sheet.";
      return;
    }
    const height = rows.length;
    const width = Math.max(...rows.map((row) => row.length));
    const box = this.target();
    const fill = (have, want) => Math.max(have, Math.floor(want / have) * have);
    const bottom = Math.min(this.model.layers, box.top + fill(height, box.bottom - box.top + 1));
    const right = Math.min(this.layout.columns.length, box.left + fill(width, box.right - box.left + 1));
    this.change(() => {
      for (let layer = box.top; layer < bottom; layer += 1) {
        for (let column = box.left; column < right; column += 1) {
          const rank = rows[(layer - box.top) % height][(column - box.left) % width];
          if (rank !== null && rank !== undefined) this.touch({}, layer, column, { set: rank });
        }
      }
    });
  }
}

/** The part of the page around an element that scrolls up and down. */
function scrollerOf(element) {
  let at = element;
  while (at) {
    at = at.parentElement ?? at.getRootNode().host;
    if (at && at.scrollHeight > at.clientHeight && /auto|scroll/.test(getComputedStyle(at).overflowY)) return at;
  }
  return document.scrollingElement;
}

function one({ layer, column }) {
  return { top: layer, bottom: layer, left: column, right: column };
}

function joined(a, b) {
  return {
    top: Math.min(a.top, b.top),
    bottom: Math.max(a.bottom, b.bottom),
    left: Math.min(a.left, b.left),
    right: Math.max(a.right, b.right),
  };
}

function inside(box, { layer, column }) {
  return layer >= box.top && layer <= box.bottom && column >= box.left && column <= box.right;
}

/** Whether two models have the same cells, so that a cursor in one is one in the other. */
function sameCells(a, b) {
  return a.layers === b.layers && JSON.stringify(a.strips) === JSON.stringify(b.strips);
}
