// The rows of a dataset as points: coloured by a label, framed by mouse or keys.

custom.dataset_plane = {
  uses: [],
  async draw(figure, rows) {
    const {state, look, colourable, frame: tellFrame, found} = rowTable.choosing;
    const {shares, all} = await table(source(figure));
    const plot = figure.querySelector('.plot');
    const points = rows.filter((row) => row.pc1 !== null && row.pc2 !== null);
    const column = colourable.find((one) => one.label_column === choices.label);
    const hues = column ? (column.is_number ? numberColours(points) : classColours(points)) : {of: () => getComputedStyle(document.documentElement).getPropertyValue('--accent').trim(), key: []};
    const canvas = element('canvas'), reading = element('output', {className: 'reading'});
    const place = element('div', {className: 'matrix', tabIndex: 0, role: 'application'}, canvas);
    place.setAttribute('aria-label', `${points.length} points. Enter makes a frame, arrows move it, with Shift they change its size, Escape takes it away.`);
    const percentOf = (share) => `${(100 * share).toFixed(1)}%`;
    const note = element('p', {className: 'quiet', textContent: `${percentOf(shares[0])} of the variance runs across, ${percentOf(shares[1])} up. `
      + (rows.length < all ? `${rows.length} of ${all} rows, drawn by lot, are shown.` : `All ${all} rows are shown.`)
      + (points.length < rows.length ? ` ${rows.length - points.length} have a value that is no number, and are left out.` : '')});
    plot.replaceChildren(element('div', {className: 'hues'}, ...hues.key), place, reading, note);
    const box = ['pc1', 'pc2'].map((name) => points.reduce(([a, b], row) => [Math.min(a, row[name]), Math.max(b, row[name])], [Infinity, -Infinity]));
    const pad = 14;
    let width = 0, height = 0, near = null;
    // One unit is as long across as up: distances mean something.
    const unit = () => Math.min((width - 2 * pad) / (box[0][1] - box[0][0] || 1), (height - 2 * pad) / (box[1][1] - box[1][0] || 1));
    const centre = box.map(([a, b]) => (a + b) / 2);
    const x = (value) => width / 2 + (value - centre[0]) * unit(), y = (value) => height / 2 - (value - centre[1]) * unit();
    const back = (px, py) => [centre[0] + (px - width / 2) / unit(), centre[1] - (py - height / 2) / unit()];
    const inside = (row, [x0, y0, x1, y1]) => row.pc1 >= Math.min(x0, x1) && row.pc1 <= Math.max(x0, x1) && row.pc2 >= Math.min(y0, y1) && row.pc2 <= Math.max(y0, y1);
    const paint = () => {
      const style = getComputedStyle(document.documentElement);
      const css = (name) => style.getPropertyValue(`--${name}`).trim();
      const context = canvas.getContext('2d');
      context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
      context.clearRect(0, 0, width, height);
      const some = found();
      const stands = (row) => (!some || some.has(row.prompt_id)) && (!state.frame || inside(row, state.frame));
      const dot = (row, alpha, radius) => {
        context.globalAlpha = alpha;
        context.fillStyle = hues.of(row);
        context.beginPath();
        context.arc(x(row.pc1), y(row.pc2), radius, 0, 7);
        context.fill();
      };
      for (const row of points) if (!stands(row)) dot(row, .12, 2.5);
      for (const row of points) if (stands(row)) dot(row, .8, 3);
      context.globalAlpha = 1;
      const ring = (row, thick) => { context.strokeStyle = css('ink'); context.lineWidth = thick; context.beginPath(); context.arc(x(row.pc1), y(row.pc2), 6, 0, 7); context.stroke(); };
      for (const row of points) if (row.prompt_id === near?.prompt_id || (!document.getElementById('one-row').hidden && row.prompt_id === choices.prompt)) ring(row, row === near ? 2 : 1.5);
      if (state.frame) {
        const [x0, y0, x1, y1] = state.frame;
        context.strokeStyle = css('accent');
        context.lineWidth = 1.5;
        context.strokeRect(Math.min(x(x0), x(x1)), Math.min(y(y0), y(y1)), Math.abs(x(x1) - x(x0)), Math.abs(y(y1) - y(y0)));
      }
    };
    const tell = (row) => { near = row; reading.textContent = row ? [`row ${row.prompt_id}`, column ? `${column.label_column}: ${row.label ?? 'none'}` : '', `${short(row.pc1)}, ${short(row.pc2)}`].filter(Boolean).join(' · ') : ''; paint(); };
    const setFrame = (frame) => {
      state.frame = frame;
      paint();
      tellFrame(frame, frame && new Set(points.filter((row) => inside(row, frame)).map((row) => row.prompt_id)));
    };
    Object.assign(figure, {paint, release: () => setFrame(null), point: (prompt) => tell(points.find((row) => row.prompt_id === prompt) ?? null)});
    const size = () => {
      width = place.clientWidth;
      height = Math.round(Math.min(460, Math.max(240, width * .5)));
      Object.assign(canvas.style, {width: `${width}px`, height: `${height}px`});
      [canvas.width, canvas.height] = [width, height].map((pixels) => Math.round(pixels * devicePixelRatio));
      paint();
    };
    const at = (event) => { const {left, top} = canvas.getBoundingClientRect(); return [event.clientX - left, event.clientY - top]; };
    const nearest = ([px, py]) => points.reduce((best, row) => { const far = Math.hypot(x(row.pc1) - px, y(row.pc2) - py); return far < best[1] ? [row, far] : best; }, [null, 12])[0];
    let from = null, moved = false;
    place.addEventListener('pointerdown', (event) => { from = at(event); moved = false; });
    place.addEventListener('pointermove', (event) => {
      if (!from || !event.buttons) { tell(nearest(at(event))); return; }
      const to = at(event);
      if (!moved && Math.hypot(to[0] - from[0], to[1] - from[1]) < 4) return;
      if (!moved) place.setPointerCapture(event.pointerId);
      moved = true;
      state.frame = [...back(...from), ...back(...to)];
      paint();
    });
    place.addEventListener('pointerup', (event) => {
      if (moved) setFrame(state.frame);
      else if (nearest(at(event))) look(nearest(at(event)).prompt_id);
      else if (state.frame) setFrame(null);
      from = null;
    });
    place.addEventListener('pointerleave', () => tell(null));
    place.addEventListener('keydown', (event) => {
      const step = 16 / unit();
      const ways = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step]};
      if (event.key === 'Escape') setFrame(null);
      else if (event.key === 'Enter' && !state.frame) setFrame([...back(width * .4, height * .6), ...back(width * .6, height * .4)]);
      else if (event.key in ways && state.frame) {
        const [dx, dy] = ways[event.key], [x0, y0, x1, y1] = state.frame;
        setFrame(event.shiftKey ? [x0, y0, x1 + dx, y1 + dy] : [x0 + dx, y0 + dy, x1 + dx, y1 + dy]);
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    figure.watch?.disconnect();
    figure.watch = new ResizeObserver(size);
    figure.watch.observe(place);
    size();
    if (state.frame) setFrame(state.frame);
  },
};

const GREY = '#9a9a9a';

/** Numbers on a ramp, between the least and the greatest that are drawn. */
function numberColours(points) {
  const numbers = points.map((row) => (row.label === null ? NaN : Number(row.label)));
  const [low, high] = numbers.reduce(([a, b], x) => (Number.isFinite(x) ? [Math.min(a, x), Math.max(b, x)] : [a, b]), [Infinity, -Infinity]);
  const stops = [[68, 40, 130], [49, 104, 142], [53, 160, 120], [160, 200, 60], [250, 220, 40]];
  const ramp = (share) => {
    const place = share * (stops.length - 1), n = Math.min(Math.floor(place), stops.length - 2);
    return `rgb(${stops[n].map((part, k) => Math.round(part + (stops[n + 1][k] - part) * (place - n)))})`;
  };
  const bar = element('span', {className: 'ramp'});
  bar.style.background = `linear-gradient(to right, ${[0, .25, .5, .75, 1].map(ramp).join(', ')})`;
  const ends = element('div', {className: 'ends'}, element('span', {textContent: short(low)}), element('span', {textContent: short(high)}));
  const key = [element('div', {className: 'legend'}, element('div', {}, bar, ends))];
  if (numbers.some((x) => !Number.isFinite(x))) key.push(hueKey(GREY, 'no number'));
  return {of: (row) => (row.label === null || !Number.isFinite(Number(row.label)) ? GREY : ramp((Number(row.label) - low) / (high - low || 1))), key};
}

/** A colour for each class. */
function classColours(points) {
  const names = [...new Set(points.map((row) => row.label))].filter((name) => name !== null).sort();
  const series = getComputedStyle(document.documentElement).getPropertyValue('--series').trim().split(/\s*,\s*/);
  const hue = new Map(names.map((name, n) => [name, series[n] ?? `hsl(${(n * 137.5) % 360} 55% 55%)`]));
  const key = [...hue].map(([name, colour]) => hueKey(colour, name));
  if (points.some((row) => row.label === null)) key.push(hueKey(GREY, 'none'));
  return {of: (row) => hue.get(row.label) ?? GREY, key};
}

function hueKey(colour, name) {
  const dot = element('i');
  dot.style.background = colour;
  return element('span', {className: 'hue'}, dot, element('bdi', {textContent: name}));
}
