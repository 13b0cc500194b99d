// Any tensor of a run, as tiles; what the page of attention shares with it.

/** A rectangle of a tensor, as float32. */
async function floats(address) {
  return new Float32Array(await (await answered(address)).arrayBuffer());
}

/** The address of a tile of what a figure's table says the facts of; `form` is empty for float32. */
function tileAddress(facts, values, form = '') {
  const [path, query] = facts.split('?');
  const all = new URLSearchParams(query);
  for (const [name, value] of Object.entries(values)) all.set(name, value);
  return `${path.replace(/facts$/, form ? `tile.${form}` : 'tile')}?${all}`;
}

/** A token as an axis has it: its text, or its position where that is not known. */
const tokenName = (tokens, position) => (tokens[position] ? tokenText(tokens[position]) : String(position));
const tokenAt = (tokens, position) => (tokens[position] ? `${tokenText(tokens[position])} (position ${position})` : `position ${position}`);

/** Buttons that zoom, for those without a wheel. */
function zoomButtons(control) {
  const button = (text, title, act) => {
    const made = element('button', {type: 'button', textContent: text, title});
    made.setAttribute('aria-label', title);
    made.addEventListener('click', act);
    return made;
  };
  return element('div', {className: 'zoom'}, button('+', 'Zoom in', () => control().zoom(1.5)),
    button('−', 'Zoom out', () => control().zoom(1 / 1.5)), button('Whole', 'Show the whole', () => control().fit()));
}

const STATISTIC = {extreme: 'the one furthest from 0', mean: 'their mean', first: 'the first of them'};

/** Give the controls of a tensor what it has: layers, heads. */
function fitControls(form, facts, site) {
  const head = form.querySelector('[data-set="head"]');
  head.max = facts.heads - 1;
  head.closest('label').hidden = facts.heads < 2;
  if (Number(head.value) > facts.heads - 1) {
    head.value = facts.heads - 1;
    choices.head = facts.heads - 1;
  }
  form.querySelector('[data-set="layer"]').closest('label').hidden = ['embeddings', 'logits'].includes(site);
}

custom.tensor = {
  uses: ['head', 'statistic', 'ends'],
  async draw(figure) {
    const address = source(figure);
    const facts = await table(address);
    const {site, layer, statistic, ends} = choices;
    fitControls(document.getElementById('tensor-choices'), facts, site);
    const head = choices.head ?? 0;
    const shape = `${facts.height} ${facts.width}`;
    if (figure.shape !== shape) {
      const said = figure.shape ? null : new URLSearchParams(location.search).get('view')?.split(',').map(Number);
      figure.view = newView();
      if (said?.length === 4 && said.every(Number.isFinite)) [figure.view.row, figure.view.column, figure.view.high, figure.view.wide] = said;
      figure.shape = shape;
      let later;
      figure.view.listeners.add(() => {
        clearTimeout(later);
        const {row, column, high, wide} = figure.view;
        later = setTimeout(() => { if (figure.shape === shape) remember('view', [row, column, high, wide].map((x) => Number(x.toFixed(3))).join(',')); }, 300);
      });
    }
    for (const one of [...figure.view.listeners].slice(1)) figure.view.listeners.delete(one);
    const limits = facts.ends;
    const cut = ends === 'inner' && site !== 'attention';
    const made = () => newScale({low: limits.low ?? 0, high: limits.high ?? 0, limit: cut ? limits.inner : null, curve: limits.low < 0 ? 'linear' : 'root'});
    let scale = made(), drawnIn = theme();
    const scaleNow = () => { if (drawnIn !== theme()) { scale = made(); drawnIn = theme(); } return scale; };
    const {tokens} = facts, positions = facts.columns.position;
    const what = (column) => (facts.is_keyed ? `key ${tokenAt(tokens, column)}` : `dimension ${column}`);
    const place = element('div');
    const note = element('p', {className: 'quiet'});
    const plot = figure.querySelector('.plot');
    figure.tile = (row, column, rows, columns, down, across) => ({head, row, column, rows, columns, down, across, statistic});
    plot.replaceChildren(legend(scale, {cut, lost: facts.ends.nonfinite > 0}), place, note);
    figure.control = putMatrix(place, {
      size: {rows: facts.height, columns: facts.width}, view: figure.view, scale: scaleNow,
      tile: (...at) => floats(tileAddress(address, figure.tile(...at))),
      label: `${site}${facts.heads > 1 ? `, head ${head}` : ''}: ${facts.height} tokens by ${facts.width} ${facts.is_keyed ? 'keys' : 'dimensions'}. Arrows move, plus and minus zoom, 0 shows the whole.`,
      names: {row: (row) => tokenName(tokens, positions[row]), column: facts.is_keyed ? (column) => tokenName(tokens, column) : String},
      gutter: [76, facts.is_keyed ? 64 : 20],
      tell: (row, column, value, block) => {
        const number = Number.isFinite(value) ? String(value).replace('-', '−') : 'no number';
        if (!block) return `${tokenAt(tokens, positions[row])} · ${what(column)} · ${number}`;
        return `${block.down} tokens from ${tokenAt(tokens, positions[block.row])} · ${block.across} columns from ${what(block.column)} · ${STATISTIC[statistic]}: ${number}`;
      },
    });
    plot.append(zoomButtons(() => figure.control));
    const tell = () => {
      const {down, across} = figure.control.block();
      const how = down * across > 1 ? `One pixel stands for up to ${down} × ${across} values and shows ${STATISTIC[statistic]}. ` : 'Every value has a place of its own. ';
      const range = limits.low === null ? 'No value is a number. ' : `Values from ${short(limits.low)} to ${short(limits.high)}${facts.heads > 1 ? ', over all heads' : ''}. `;
      note.textContent = how + range + (cut ? `Colours end at ${short(limits.inner)}, within which 99.9% of the values lie. ` : '')
        + (limits.nonfinite ? `${limits.nonfinite} are NaN or infinite, or were not computed, and grey. ` : '');
    };
    figure.view.listeners.add(tell);
    tell();
  },
  rows: (figure) => ask(tileAddress(source(figure), {...figure.control.window(), head: choices.head ?? 0, statistic: choices.statistic}, 'json')),
  file: (figure, form) => tileAddress(source(figure), {...figure.control.window(), head: choices.head ?? 0, statistic: choices.statistic}, form),
};
darkScreen.addEventListener('change', () => { for (const figure of document.querySelectorAll('figure')) figure.control?.recolour(); });
