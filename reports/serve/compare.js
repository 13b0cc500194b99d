// The comparison of states: which there are, in the address; vectors as pictures on one scale; tables.

/** The states of the page go elsewhere: to the same page with other refs. */
function compareRefs(refs) {
  const there = new URL(location.href);
  there.searchParams.delete('ref');
  for (const ref of refs) there.searchParams.append('ref', ref);
  location.href = there;
}

const comparedStates = document.getElementById('compared');
if (comparedStates) {
  const refs = [...report.refs];  // as they are: what a page shows makes some characters visible
  comparedStates.addEventListener('click', ({target}) => {
    const button = target.closest('button');
    if (!button) return;
    const at = [...comparedStates.children].indexOf(button.closest('li'));
    const [one] = refs.splice(at, 1);
    if (button.dataset.move) refs.splice(at + Number(button.dataset.move), 0, one);
    compareRefs(refs);
  });
  const chooser = document.getElementById('chooser');
  if (chooser) {
    const {run, find, ref: list} = chooser.elements;
    const said = chooser.querySelector('output');
    let turn = 0;
    const fill = async () => {
      const mine = turn += 1;
      const asked = new URLSearchParams({run: run.value, find: find.value});
      try {
        const rows = await ask(`/data/compare_choices.json?${asked}`);  // names as they are, not as they are shown
        if (mine !== turn) return;
        list.replaceChildren(...rows.map((row) => element('option', {
          value: row.ref, textContent: [row.name, row.text.replace(/\s+/g, ' ')].filter(Boolean).join(' — '), disabled: refs.includes(row.ref),
        })));
        said.textContent = rows.length === 300 ? 'the first 300; find more by their text' : `${rows.length} states`;
      } catch (error) {
        said.textContent = error.message;
      }
    };
    if (comparedStates.lastElementChild && !run.querySelector('[selected]')) run.value = comparedStates.lastElementChild.querySelector('a').textContent;
    if (!run.value) run.selectedIndex = 0;
    run.addEventListener('change', fill);
    find.addEventListener('input', () => { clearTimeout(find.wait); find.wait = setTimeout(fill, 200); });
    list.addEventListener('dblclick', () => chooser.requestSubmit());
    chooser.addEventListener('submit', (event) => {
      event.preventDefault();
      const some = [...list.selectedOptions].map((one) => one.value);
      if (some.length) compareRefs([...refs, ...some]);
      else said.textContent = 'Choose one or more states of the list.';
    });
    fill();
  }
}

// --- tables -------------------------------------------------------------------------------------------------

const comparedNumber = (value) => (value === null ? '–' : typeof value !== 'number' ? String(value)
  : Number.isInteger(value) ? String(value) : Math.abs(value) < 1000 ? value.toFixed(4) : value.toFixed(1));
const comparedHeads = {
  site: 'site', place: 'state', settles: 'settles at layer', arrives: 'arrives at layer', layers: 'of layers', cosine_mean: 'cosine, mean',
  cosine_min: 'least', cosine_min_layer: 'at layer', mae_mean: 'MAE, mean', mae_max: 'largest', mae_max_layer: 'at layer',
  jaccard_mean: 'overlap, mean', jaccard_min: 'least', jaccard_min_layer: 'at layer', std_mean: 'std, mean', std_max: 'largest', std_max_layer: 'at layer',
};

custom.compare_table = {
  uses: [],
  draw(figure, rows) {
    const names = Object.keys(rows[0] ?? {}).filter((name) => name in comparedHeads);
    const cell = (row, name) => (name === 'place' ? report.names[row.place] : comparedNumber(row[name]));
    const head = element('tr', {}, ...names.map((name, at) => element('th', {scope: 'col', textContent: comparedHeads[name], className: at ? '' : 'left'})));
    const body = rows.map((row) => element('tr', {}, ...names.map((name, at) => element('td', {textContent: cell(row, name), className: at ? '' : 'left'}))));
    const scroll = element('div', {className: 'scroll', tabIndex: 0, role: 'group', ariaLabel: 'table'},
      element('table', {className: 'dense'}, element('thead', {}, head), element('tbody', {}, ...body)));
    figure.querySelector('.plot').replaceChildren(scroll);
  },
};

custom.compare_said = {
  uses: [],
  draw(figure, [row]) {
    if (!row) return;
    const by = {prefix: 'of the common beginning of both', message: 'of the common beginning and end of each message', last: 'the last of each, whatever they are'};
    figure.querySelector('.plot').replaceChildren(element('p', {
      textContent: `${row.aligned} pairs of tokens, ${by[choices.alignment] ?? ''}; A has ${row.tokens_a} tokens, B ${row.tokens_b}.`
        + (row.aligned > 160 ? ' At most 160 are drawn, evenly spread.' : ''),
    }));
  },
};

// --- vectors as pictures ------------------------------------------------------------------------------------

/** Colours from below zero through the page's own to above it. */
function comparedColours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (text) => text.match(/[0-9a-f]{2}/gi).map((two) => parseInt(two, 16));
  const [below, zero, above] = ['#0072b2', style.getPropertyValue('--card').trim(), '#d55e00'].map(rgb);
  return (share) => {
    const end = share < 0 ? below : above;
    const size = Math.sqrt(Math.min(1, Math.abs(share)));  // the eye sees small ones too
    return zero.map((from, at) => from + (end[at] - from) * size);
  };
}

/** One picture of a grid of values: a pixel each, stretched by the style. */
function comparedPicture(grid, name, colour, side) {
  const canvas = element('canvas', {width: grid.columns, height: grid.rows.length, tabIndex: 0});
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `${name}: ${grid.rows.length} rows by ${grid.columns} columns; arrows read values`);
  canvas.style.height = `${Math.max(90, Math.min(grid.rows.length * 7, 480))}px`;
  const context = canvas.getContext('2d');
  const image = context.createImageData(grid.columns, grid.rows.length);
  grid.cells.forEach((cell, at) => {
    if (cell && cell[side] !== null) image.data.set([...colour(cell[side] / (cell[grid.scale] || 1)), 255], 4 * at);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

custom.compare_heat = {
  uses: ['range'],
  draw(figure, rows) {
    const plot = figure.querySelector('.plot');
    if (!rows.length) {
      plot.replaceChildren();  // a picture has a size
      return;
    }
    const dims = [...new Set(rows.map((row) => row.dim))].sort((a, b) => a - b);
    const lines = [...new Map(rows.map((row) => [row.row, row.name])).entries()].sort(([a], [b]) => a - b);
    const places = new Map(lines.map(([row], at) => [row, at]));
    const columns = new Map(dims.map((dim, at) => [dim, at]));
    const cells = new Array(lines.length * dims.length);
    for (const row of rows) cells[places.get(row.row) * dims.length + columns.get(row.dim)] = row;
    const grid = {rows: lines, columns: dims.length, cells, scale: choices.range === 'all' ? 'scale_all' : 'scale_row'};
    const colour = comparedColours();
    const said = element('output', {className: 'quiet small', textContent: this.scaleOf(grid, rows)});
    const sides = [['a', 'A'], ['b', 'B'], ['difference', 'A − B']].map(([side, name]) => {
      const canvas = comparedPicture(grid, name, colour, side);
      this.follow(canvas, grid, said);
      return element('div', {className: 'heat'}, element('b', {textContent: name}), canvas);
    });
    plot.replaceChildren(...sides, said);
  },
  scaleOf({scale}, rows) {
    const step = rows[0].dims > 1 ? `a column is ${rows[0].dims} dimensions` : 'a column is one dimension';
    const width = scale === 'scale_all' ? `colours from −${comparedNumber(rows[0].scale_all)} to ${comparedNumber(rows[0].scale_all)}, in all three` : 'each row has its own scale, the same in all three';
    return `${step}; ${width}. Point at a value, or use the arrows.`;
  },
  /** Tell the value under the pointer, or where the arrows went. */
  follow(canvas, grid, said) {
    let [x, y] = [0, 0];
    const tell = () => {
      const cell = grid.cells[y * grid.columns + x];
      if (!cell) return;
      const last = cell.dim + cell.dims - 1;
      said.textContent = `${tokenText(cell.name)} · ${cell.dims > 1 ? `dimensions ${cell.dim} to ${last}` : `dimension ${cell.dim}`} · `
        + `A ${comparedNumber(cell.a)}, B ${comparedNumber(cell.b)}, A − B ${comparedNumber(cell.difference)}`;
    };
    canvas.addEventListener('pointermove', (event) => {
      x = Math.min(grid.columns - 1, Math.max(0, Math.floor(event.offsetX / canvas.clientWidth * grid.columns)));
      y = Math.min(grid.rows.length - 1, Math.max(0, Math.floor(event.offsetY / canvas.clientHeight * grid.rows.length)));
      tell();
    });
    canvas.addEventListener('keydown', (event) => {
      const step = event.shiftKey ? 10 : 1;
      const [dx, dy] = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key] ?? [];
      if (dx === undefined) return;
      x = Math.min(grid.columns - 1, Math.max(0, x + dx));
      y = Math.min(grid.rows.length - 1, Math.max(0, y + dy));
      tell();
      event.preventDefault();
      event.stopPropagation();
    });
  },
};
