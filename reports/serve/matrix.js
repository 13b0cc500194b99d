// A matrix as tiles on a canvas: zoomed and panned by mouse and keys, its exact values below the pointer.

/** Values of a tile along each side, as the server gives them. */
const TILE = 512;
const RAMPS = {
  signed: {light: ['#12507f', '#5fa3cf', '#f4f2ee', '#e9964f', '#9c3c06'], dark: ['#9bd5ff', '#2f7ab8', '#1c1f23', '#c46a1c', '#ffc48f']},
  unsigned: {light: ['#fbfaf7', '#cfe0ee', '#7fb0d6', '#2c6fae', '#0b2f5c'], dark: ['#1c1f23', '#1f3f5f', '#2f74ad', '#79b8ec', '#e3f2ff']},
};
const NO_NUMBER = [150, 150, 150];

/** A scale from values to colours: signed around 0, or from 0 on; what lies beyond has the colour of the end. */
function newScale({low, high, limit, curve = 'linear'}) {
  const signed = low < 0;
  const most = limit ?? Math.max(Math.abs(low), Math.abs(high));
  const stops = RAMPS[signed ? 'signed' : 'unsigned'][theme()].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = Array.from({length: 256}, (_, index) => {
    const at = (index / 255) * (stops.length - 1);
    const from = Math.min(Math.floor(at), stops.length - 2);
    return stops[from].map((part, n) => Math.round(part + (stops[from + 1][n] - part) * (at - from)));
  });
  const share = curve === 'root' ? (value) => Math.sqrt(value) : (value) => value;
  const place = signed ? (value) => (value / most + 1) / 2 : (value) => share(Math.max(value, 0) / most);
  const colour = (value) => (Number.isFinite(value) ? table[Math.round(255 * Math.min(Math.max(most ? place(value) : signed / 2, 0), 1))] : NO_NUMBER);
  return {signed, most, curve, table, colour};
}

const short = (value) => (value === null || !Number.isFinite(value) ? 'no number' : Number(value.toPrecision(4)).toString().replace('-', '−'));

/** What the colours of a scale stand for. */
function legend(scale, {cut = false, lost = false} = {}) {
  const ramp = element('span', {className: 'ramp'});
  ramp.style.background = `linear-gradient(to right, ${scale.table.filter((_, n) => n % 15 === 0).map((c) => `rgb(${c})`).join(', ')})`;
  const middle = scale.signed ? 0 : scale.curve === 'root' ? scale.most / 4 : scale.most / 2;
  const names = [scale.signed ? -scale.most : 0, middle, scale.most].map((value, n) =>
    element('span', {textContent: (cut && n === 2 ? '≥ ' : cut && n === 0 && scale.signed ? '≤ ' : '') + short(value)}));
  const notes = lost ? [element('span', {className: 'lost', textContent: 'no number'})] : [];
  return element('div', {className: 'legend'}, element('div', {}, ramp, element('div', {className: 'ends'}, ...names)), ...notes);
}

/** What is in sight; matrices that share one move together. */
function newView() {
  const listeners = new Set();
  return {
    row: 0, column: 0, high: 0, wide: 0, cursor: null, listeners,
    set(values) {
      Object.assign(this, values);
      for (const one of listeners) one();
    },
  };
}

/**
 * Put a matrix into an element.
 *
 * `size` is {rows, columns}, `tile(row, column, rows, columns, down, across)` promises its float32 values, `scale()` gives
 * the colours, `names` has functions from a row or column to its name, `tell(row, column, value, block)` says a value in
 * words, `pick(row, column)` is called for a click or Enter, `marked(row, column)` frames cells.
 */
function putMatrix(place, {size, view, tile, scale, names, tell, label, pick, marked, square = false, most = 520, cell = 22, gutter = [76, 20]}) {
  const canvas = element('canvas');
  const reading = element('output', {className: 'reading'});
  const frame = element('div', {className: 'matrix', tabIndex: 0, role: 'application'}, canvas);
  frame.setAttribute('aria-label', label);
  frame.setAttribute('aria-live', 'off');
  place.replaceChildren(frame, reading);
  const tiles = new Map();
  const [left, top] = gutter;
  let width = 0, height = 0, pending = 0, hover = null, said = 0;

  // --- geometry: a value has `wide` by `high` pixels, and below one pixel blocks of values share one

  const sizes = () => {
    width = Math.max(60, frame.clientWidth - left - 2);
    const fits = square ? width : size.rows * Math.min(cell, Math.max(1, width / size.columns * 4));
    height = Math.round(Math.min(most, Math.max(square ? 0 : 24, fits)));
    if (square && size.rows < size.columns) height = Math.max(24, Math.round(Math.min(height, size.rows * Math.max(cell, width / size.columns))));
    Object.assign(canvas.style, {width: `${width + left}px`, height: `${height + top}px`});
    canvas.width = Math.round((width + left) * devicePixelRatio);
    canvas.height = Math.round((height + top) * devicePixelRatio);
  };
  const least = () => ({high: Math.min(cell, height / size.rows), wide: Math.min(cell * 2, width / size.columns)});
  const settle = (values) => {
    const small = least();
    const next = {...view, ...values};
    const wide = Math.min(64, Math.max(small.wide, next.wide)), high = Math.min(64, Math.max(small.high, next.high));
    const inside = (at, all, seen) => Math.max(0, Math.min(at, all - seen));
    view.set({wide, high, cursor: next.cursor, row: inside(next.row, size.rows, height / high), column: inside(next.column, size.columns, width / wide)});
  };
  const fit = () => settle({row: 0, column: 0, ...least()});
  const zoom = (by, x = width / 2, y = height / 2) => {
    const column = view.column + x / view.wide, row = view.row + y / view.high;
    const wide = Math.min(64, Math.max(least().wide, view.wide * by)), high = Math.min(64, Math.max(least().high, view.high * by));
    settle({wide, high, column: column - x / wide, row: row - y / high});
  };
  const block = () => ({down: 2 ** Math.max(0, Math.ceil(-Math.log2(view.high) - 1e-9)), across: 2 ** Math.max(0, Math.ceil(-Math.log2(view.wide) - 1e-9))});

  // --- tiles

  const paint = (one) => {
    const {colour} = scale();
    const image = new ImageData(one.columns, one.rows);
    for (let at = 0; at < one.values.length; at += 1) {
      const [red, green, blue] = colour(one.values[at]);
      image.data.set([red, green, blue, 255], 4 * at);
    }
    one.picture = Object.assign(document.createElement('canvas'), {width: one.columns, height: one.rows});
    one.picture.getContext('2d').putImageData(image, 0, 0);
  };
  const get = (i, j, {down, across}) => {
    const key = `${i} ${j} ${down} ${across}`;
    if (tiles.has(key)) return tiles.get(key);
    const row = i * TILE * down, column = j * TILE * across;
    const rows = Math.min(TILE, Math.ceil((size.rows - row) / down)), columns = Math.min(TILE, Math.ceil((size.columns - column) / across));
    const one = {row, column, rows, columns, down, across, values: null};
    tiles.set(key, one);
    if (tiles.size > 48) tiles.delete(tiles.keys().next().value);
    pending += 1;
    Promise.resolve(tile(row, column, rows, columns, down, across)).then((values) => { one.values = values; paint(one); }, (error) => {
      tiles.delete(key);
      reading.textContent = error.message;
    }).finally(() => { pending -= 1; schedule(); });
    return one;
  };
  const inSight = () => {
    const shape = block(), found = [];
    const across = TILE * shape.across, down = TILE * shape.down;
    for (let i = Math.floor(view.row / down); i * down < Math.min(size.rows, view.row + height / view.high); i += 1)
      for (let j = Math.floor(view.column / across); j * across < Math.min(size.columns, view.column + width / view.wide); j += 1) found.push(get(i, j, shape));
    return found;
  };
  const valueAt = (row, column) => {
    const {down, across} = block();
    const one = tiles.get(`${Math.floor(row / TILE / down)} ${Math.floor(column / TILE / across)} ${down} ${across}`);
    return one?.values?.[Math.floor((row - one.row) / down) * one.columns + Math.floor((column - one.column) / across)];
  };

  // --- drawing

  let waiting = false;
  const schedule = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; if (frame.isConnected) drawAll(); else stop(); });
  };
  const nameAxis = (context, css) => {
    context.fillStyle = css('quiet');
    context.font = `11px ${css('mono')}`;
    context.textBaseline = 'middle';
    const step = (pixels, room) => { for (const n of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000]) if (n * pixels >= room) return n; return 50000; };
    context.textAlign = 'right';
    const down = step(view.high, 13);
    for (let row = Math.ceil(view.row / down) * down; row < Math.min(size.rows, view.row + height / view.high); row += down)
      context.fillText(clip(names.row(row), 10), left - 5, top + (row + .5 - view.row) * view.high, left - 8);
    const texts = top > 30;
    const across = step(view.wide, texts ? 13 : 34);
    for (let column = Math.ceil(view.column / across) * across; column < Math.min(size.columns, view.column + width / view.wide); column += across) {
      context.save();
      context.translate(left + (column + .5 - view.column) * view.wide, top - 4);
      if (texts) context.rotate(-Math.PI / 2);
      context.textAlign = texts ? 'left' : 'center';
      context.fillText(clip(names.column(column), 9), 0, texts ? 0 : -6, texts ? top - 6 : 60);
      context.restore();
    }
  };
  const clip = (text, most) => { const letters = [...text]; return letters.length > most ? `${letters.slice(0, most - 1).join('')}…` : text; };
  const outline = (context, row, column, colour, thick) => {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.strokeRect(left + (column - view.column) * view.wide + .5, top + (row - view.row) * view.high + .5, Math.max(view.wide - 1, 2), Math.max(view.high - 1, 2));
  };
  const drawAll = () => {
    const style = getComputedStyle(document.documentElement);
    const css = (name) => style.getPropertyValue(`--${name}`).trim();
    const context = canvas.getContext('2d');
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, width + left, height + top);
    context.save();
    context.beginPath();
    context.rect(left, top, Math.min(width, (size.columns - view.column) * view.wide), Math.min(height, (size.rows - view.row) * view.high));
    context.clip();
    context.fillStyle = css('grid');
    context.fillRect(left, top, width, height);
    context.imageSmoothingEnabled = false;
    for (const one of inSight()) if (one.picture) context.drawImage(one.picture, left + (one.column - view.column) * view.wide,
      top + (one.row - view.row) * view.high, one.columns * one.across * view.wide, one.rows * one.down * view.high);
    if (marked) for (let row = 0; row < size.rows; row += 1) for (let column = 0; column < size.columns; column += 1) if (marked(row, column)) outline(context, row, column, css('warn'), 2);
    if (view.cursor) outline(context, ...view.cursor, css('ink'), 2);
    context.restore();
    nameAxis(context, css);
    frame.dataset.state = pending ? 'loading' : 'drawn';
    if (!pending) say();
  };
  const redraw = () => schedule();
  const stop = () => { view.listeners.delete(redraw); watch.disconnect(); };

  // --- reading a value: at once what is drawn, and where that stands for many the exact one as soon as it is there

  const say = async () => {
    const at = hover ?? view.cursor;
    if (!at) return;
    const turn = said += 1;
    const [row, column] = at, {down, across} = block();
    const value = valueAt(row, column);
    if (value === undefined) return;
    const one = {row: row - row % down, column: column - column % across, down: Math.min(down, size.rows - (row - row % down)), across: Math.min(across, size.columns - (column - column % across))};
    reading.textContent = tell(row, column, value, one.down * one.across > 1 ? one : null);
    if (one.down * one.across === 1 || Math.max(one.down, one.across) > TILE) return;
    await new Promise((done) => setTimeout(done, 50));
    if (turn !== said) return;
    const values = await Promise.resolve(tile(one.row, one.column, one.down, one.across, 1, 1)).catch(() => null);
    if (turn !== said || !values) return;
    let best = 0;
    values.forEach((each, n) => { if (Math.abs(each) > Math.abs(values[best])) best = n; });
    const there = [one.row + Math.floor(best / one.across), one.column + best % one.across];
    reading.textContent = `${tell(row, column, value, one)}; furthest from 0: ${tell(...there, values[best], null)}`;
  };
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left - left, y = event.clientY - box.top - top;
    const row = Math.floor(view.row + y / view.high), column = Math.floor(view.column + x / view.wide);
    return x >= 0 && y >= 0 && row < size.rows && column < size.columns ? {x, y, row, column} : null;
  };
  let drag = null;
  frame.addEventListener('pointerdown', (event) => { drag = {x: event.clientX, y: event.clientY, row: view.row, column: view.column, moved: false}; });
  frame.addEventListener('pointermove', (event) => {
    if (drag && event.buttons) {
      const x = event.clientX - drag.x, y = event.clientY - drag.y;
      if (!drag.moved && Math.hypot(x, y) < 4) return;
      if (!drag.moved) frame.setPointerCapture(event.pointerId);
      drag.moved = true;
      settle({row: drag.row - y / view.high, column: drag.column - x / view.wide});
      return;
    }
    const at = cellAt(event);
    hover = at && [at.row, at.column];
    say();
  });
  frame.addEventListener('pointerleave', () => { hover = null; say(); });
  frame.addEventListener('pointerup', (event) => {
    const at = cellAt(event);
    if (at && !drag?.moved) { settle({cursor: [at.row, at.column]}); pick?.(at.row, at.column); }
    drag = null;
  });
  frame.addEventListener('dblclick', (event) => { const at = cellAt(event); if (at && !pick) zoom(2, at.x, at.y); });
  frame.addEventListener('wheel', (event) => {
    if (!(event.ctrlKey || event.metaKey || document.activeElement === frame)) return;  // else the page scrolls
    const at = cellAt(event) ?? {};
    zoom(event.deltaY < 0 ? 1.25 : .8, at.x, at.y);
    event.preventDefault();
  }, {passive: false});
  frame.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [row, column] = view.cursor ?? [Math.floor(view.row), Math.floor(view.column)];
    const far = event.shiftKey ? 10 : 1;
    const moves = {ArrowUp: [row - far, column], ArrowDown: [row + far, column], ArrowLeft: [row, column - far], ArrowRight: [row, column + far],
      Home: [row, 0], End: [row, size.columns - 1], PageUp: [row - Math.floor(height / view.high), column], PageDown: [row + Math.floor(height / view.high), column]};
    if (event.key in moves) {
      hover = null;
      const next = view.cursor || !event.key.startsWith('Arrow') ? moves[event.key] : [row, column];
      const cursor = [[next[0], size.rows], [next[1], size.columns]].map(([at, all]) => Math.max(0, Math.min(at, all - 1)));
      const keep = (at, first, seen) => (at < first ? at : at >= first + seen ? at - seen + 1 : first);
      settle({cursor, row: keep(cursor[0], view.row, height / view.high), column: keep(cursor[1], view.column, width / view.wide)});
    } else if (event.key === '+' || event.key === '=') zoom(1.5);
    else if (event.key === '-') zoom(1 / 1.5);
    else if (event.key === '0') fit();
    else if (event.key === 'Escape') { hover = null; view.set({cursor: null}); reading.textContent = ''; } else if ((event.key === 'Enter' || event.key === ' ') && view.cursor) pick?.(...view.cursor);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  frame.addEventListener('focus', () => frame.setAttribute('aria-live', 'polite'));

  const resize = () => { const first = !width; sizes(); if (first && !view.wide) fit(); else settle({}); };
  const watch = new ResizeObserver(resize);
  watch.observe(frame);
  view.listeners.add(redraw);
  resize();
  return {
    zoom, fit, reading, block,
    recolour() { for (const one of tiles.values()) if (one.values) paint(one); schedule(); },
    /** The rectangle that is in sight, as the address of a tile says it. */
    window: () => ({row: Math.floor(view.row), column: Math.floor(view.column), ...block(),
      rows: Math.ceil(Math.min(height / view.high, size.rows - view.row) / block().down), columns: Math.ceil(Math.min(width / view.wide, size.columns - view.column) / block().across)}),
  };
}
