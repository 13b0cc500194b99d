// Attention: a map of all heads from which some are chosen, and their maps side by side on one scale.

const HEAD_MEASURES = {
  entropy: 'entropy of the weights, nats; low = looks at few tokens',
  share: 'entropy as a share of the most that it could be; low = looks at few tokens',
  to_first: 'weight of the first token of the sequence',
  largest: 'largest weight of a token',
};
/** The heads whose maps are shown, as `[layer, head]`; the address has them as `3-1,5-0`. */
const chosenHeads = () => (choices.maps || '').split(',').map((one) => one.split('-').map(Number))
  .filter((one) => one.length === 2 && one.every(Number.isInteger));
const atHead = ([layer, head]) => (one) => one[0] === layer && one[1] === head;

function chooseHeads(heads) {
  const control = document.querySelector('[data-set="maps"]');
  control.value = heads.map((one) => one.join('-')).join(',');
  control.dispatchEvent(new Event('input', {bubbles: true}));
}
function toggleHead(one) {
  const heads = chosenHeads();
  chooseHeads(heads.some(atHead(one)) ? heads.filter((other) => !atHead(one)(other)) : [...heads, one]);
}

custom.attention_heads = {
  uses: ['head_measure'],
  draw(figure, rows) {
    if (!rows.length) return;
    const measure = choices.head_measure;
    const layers = [...new Set(rows.map((row) => row.layer))], heads = 1 + Math.max(...rows.map((row) => row.head));
    const cells = new Map(rows.map((row) => [`${row.layer} ${row.head}`, row]));
    const values = Float32Array.from({length: heads * layers.length}, (_, n) =>
      cells.get(`${layers[n % layers.length]} ${Math.floor(n / layers.length)}`)?.[measure] ?? NaN);
    const most = values.reduce((a, b) => (b > a ? b : a), 0);
    const scale = newScale({low: 0, high: measure === 'entropy' ? most : 1});
    const place = element('div');
    figure.view ??= newView();
    for (const one of [...figure.view.listeners]) figure.view.listeners.delete(one);
    const {queries, from_position: first} = rows[0];
    figure.querySelector('.plot').replaceChildren(legend(scale), element('p', {className: 'quiet', textContent:
      `A row for each head, a column for each layer. Colour: ${HEAD_MEASURES[measure]}; mean over ${queries} token${queries > 1 ? `s, from position ${first} on` : `, at position ${first}`}.`}), place);
    figure.control = putMatrix(place, {
      size: {rows: heads, columns: layers.length}, view: figure.view, scale: () => scale, most: 480, cell: 18, gutter: [40, 20],
      tile: (row, column, height, width, down, across) => blockOf(values, layers.length, {row, column, height, width, down, across}),
      label: 'Heads by layer. Arrows move, Enter shows a map.',
      names: {row: String, column: (column) => String(layers[column])},
      marked: (row, column) => chosenHeads().some(atHead([layers[column], row])),
      pick: (row, column) => toggleHead([layers[column], row]),
      tell: (row, column, value) => `layer ${layers[column]}, head ${row}: ${short(value)}`,
    });
  },
};

/** A rectangle of values that are here already; of a block the first stands for all. */
function blockOf(values, all, {row, column, height, width, down, across}) {
  return Float32Array.from({length: height * width}, (_, n) => values[(row + Math.floor(n / width) * down) * all + column + (n % width) * across]);
}

custom.attention_maps = {
  uses: ['maps', 'curve'],
  async draw(figure) {
    const heads = chosenHeads();
    const plot = figure.querySelector('.plot');
    if (!heads.length) {
      plot.replaceChildren(element('p', {className: 'quiet', textContent: 'No head is chosen yet: choose some above, or all of a layer.'}));
      return;
    }
    const turn = figure.turn;
    const here = source(figure);
    const at = (layer) => here.replace(/([?&]layer=)\d+/, `$1${layer}`);
    const layers = [...new Set(heads.map(([layer]) => layer))];
    const all = new Map(await Promise.all(layers.map(async (layer) => [layer, await table(at(layer))])));
    if (turn !== figure.turn) return;
    report.tables[here] = {...report.tables[here], each: layers.map((layer) => report.tables[at(layer)].values)};
    const most = Math.max(...[...all.values()].map((facts) => facts.ends.high ?? 0));
    const {height, width} = all.get(layers[0]);
    const shape = `${height} ${width}`;
    if (figure.shape !== shape) figure.view = newView();
    figure.shape = shape;
    for (const one of [...figure.view.listeners]) figure.view.listeners.delete(one);
    const scale = newScale({low: 0, high: most, curve: choices.curve});
    const unit = choices.weigh === 'attended' ? 'Weight × length of the value' : 'Weight';
    const grid = element('div', {className: heads.length > 1 ? 'maps' : 'maps one'});
    const note = element('p', {className: 'quiet'});
    plot.replaceChildren(legend(scale), note, zoomButtons(() => figure.controls[0]), grid);
    figure.controls = heads.filter(([layer, head]) => head < all.get(layer).heads).map((one) => mapOf(grid, figure, one, all.get(one[0]), at(one[0]), scale));
    figure.control = {recolour() { draw(figure); }};
    const tell = () => {
      const {down, across} = figure.controls[0]?.block() ?? {down: 1, across: 1};
      note.textContent = `${unit}; colours grow with ${choices.curve === 'root' ? 'its square root' : 'it'}. ${down * across > 1
        ? `One pixel stands for up to ${down} × ${across} cells and shows the largest.` : 'Every cell is one query and key.'}`;
    };
    figure.view.listeners.add(tell);
    tell();
  },
  rows: async (figure) => {
    const parts = chosenHeads().map(async ([layer, head], n) => {
      const address = source(figure).replace(/([?&]layer=)\d+/, `$1${layer}`);
      return (await ask(tileAddress(address, {...figure.controls[n].window(), head}, 'json'))).map((row) => ({layer, head, ...row}));
    });
    return (await Promise.all(parts)).flat();
  },
  file: (figure, form) => asFile(source(figure).replace(/^.*\?site=(\w+)/, (_, site) => `/data/tensor_${site}?run=${encodeURIComponent(report.run)}`), form),
};

/** The map of one head; those of one figure share what is in sight. */
function mapOf(grid, figure, [layer, head], facts, address, scale) {
  const {tokens} = facts, positions = facts.columns.position;
  const away = element('button', {type: 'button', textContent: '✕', title: 'Take this map away'});
  away.setAttribute('aria-label', `Take away layer ${layer}, head ${head}`);
  away.addEventListener('click', () => toggleHead([layer, head]));
  const place = element('div');
  grid.append(element('section', {}, element('h3', {}, `Layer ${layer}, head ${head}`, away), place));
  return putMatrix(place, {
    size: {rows: facts.height, columns: facts.width}, view: figure.view, scale: () => scale, square: true, gutter: [76, 64],
    tile: (row, column, rows, columns, down, across) => floats(tileAddress(address, {head, row, column, rows, columns, down, across})),
    label: `Layer ${layer}, head ${head}: ${facts.height} tokens by ${facts.width} keys. Arrows move, plus and minus zoom, 0 shows the whole.`,
    names: {row: (row) => tokenName(tokens, positions[row]), column: (column) => tokenName(tokens, column)},
    tell: (row, column, value, block) => {
      const number = short(value);
      if (block) return `${block.down} queries from ${tokenAt(tokens, positions[block.row])}, ${block.across} keys from ${tokenAt(tokens, block.column)}: at most ${number}`;
      return column > positions[row] ? `${tokenAt(tokens, positions[row])} cannot see the later ${tokenAt(tokens, column)}`
        : `${tokenAt(tokens, positions[row])} → ${tokenAt(tokens, column)}: ${number}`;
    },
  });
}

// Frames around the chosen heads.
document.addEventListener('input', ({target}) => {
  if (target.dataset.set === 'maps') document.querySelector('figure[data-chart="attention_heads"]').control?.recolour();
});
document.getElementById('no-maps')?.addEventListener('click', () => chooseHeads([]));
document.getElementById('whole-layer')?.addEventListener('click', async () => {
  const layer = choices.layer;
  const rows = select(await table(source(document.querySelector('figure[data-chart="attention_heads"]'))), {layer});
  chooseHeads([...chosenHeads().filter((one) => one[0] !== layer), ...rows.map((row) => [layer, row.head])]);
});
