// The logit lens: a table of positions by layers, what the layer under the pointer says, and tokens that are pinned.

/** How strong a cell is, 0 to 1, by what it is shown by; the scales are the same for every run. */
const sureness = {
  probability: (row) => row.probability,
  kl: (row) => 1 - Math.log1p(row.kl) / Math.log1p(20),
  rank: (row) => 1 - Math.log1p(row.next_rank) / Math.log1p(100_000),
};
const lensScale = {
  probability: [0, 0.25, 0.5, 0.75, 1].map((value) => ({text: percent(value), row: {probability: value}})),
  kl: [20, 10, 4, 1, 0].map((value) => ({text: `${value} nats`, row: {kl: value}})),
  rank: [10_000, 1_000, 100, 10, 0].map((value) => ({text: `rank ${value}`, row: {next_rank: value}})),
};
const lensField = {probability: 'probability', kl: 'kl', rank: 'next_rank'};
const share = (by, row) => (row[lensField[by]] === null ? '0%' : `${Math.round(100 * Math.min(1, Math.max(0, sureness[by](row))))}%`);
const lensText = (by, row) => (by === 'rank' ? String(row.next_rank ?? '–') : tokenText(row.token));

const pinInput = document.querySelector('[data-set="pins"]');
const pinsNow = () => (choices.pins ? choices.pins.split(',') : []);
const pinNames = new Map();

/** Pin a token after a position, or let it go. */
function pin(position, tokenId, name) {
  const key = `${position}:${tokenId}`;
  pinNames.set(key, name);
  const now = pinsNow();
  pinInput.value = (now.includes(key) ? now.filter((one) => one !== key) : [...now, key].slice(-8)).join(',');
  pinInput.dispatchEvent(new Event('input', {bubbles: true}));
}

/** Bring the list of pins, and what is marked as pinned, up to date. */
function showPins() {
  const now = pinsNow();
  const place = document.querySelector('.pins');
  place.hidden = !now.length;
  document.getElementById('pinned').replaceChildren(...now.map((key) => {
    const [position, token] = key.split(':');
    const name = pinNames.get(key) ?? `token ${token} after ${position}`;
    const button = element('button', {type: 'button', textContent: `${name} ×`, title: 'Let go'});
    button.addEventListener('click', () => pin(position, token, name));
    return element('li', {}, button);
  }));
  for (const cell of document.querySelectorAll('.lens td')) cell.classList.toggle('pinned', now.includes(cell.dataset.pin));
  for (const button of document.querySelectorAll('.lens aside [data-pin]')) button.ariaPressed = String(now.includes(button.dataset.pin));
}

/** What one layer says after one token: its first choices, and how the token that follows fares. */
async function tellCell(figure, row) {
  const turn = figure.cell = row;
  const top = await (figure.top ??= table(source(figure).replace('lens_cells', 'lens_top')));
  if (turn !== figure.cell) return;
  const rows = select(top, {position: row.position, layer: row.layer});
  const list = rows.map((one) => {
    const button = element('button', {type: 'button', title: 'Pin'},
      Object.assign(element('span', {className: 'token', textContent: tokenText(one.token)}), {dir: 'auto'}), element('span', {textContent: percent(one.probability)}));
    button.style.setProperty('--share', `${100 * one.probability}%`);
    button.dataset.pin = `${row.position}:${one.token_id}`;
    button.addEventListener('click', () => pin(row.position, one.token_id, `${tokenText(one.token)} after ${row.position}`));
    return element('li', {}, button);
  });
  const words = [element('p', {}, `Layer ${row.layer} after `, element('span', {className: 'token state', textContent: tokenText(row.read)}), ` (${row.position}):`), element('ol', {}, ...list)];
  if (row.next_rank !== null) {
    const next = element('button', {type: 'button', title: 'Pin'}, element('span', {className: 'token', textContent: tokenText(row.next_token)}), element('span', {textContent: percent(row.next_probability)}));
    next.style.setProperty('--share', `${100 * row.next_probability}%`);
    next.dataset.pin = `${row.position}:${row.next_token_id}`;
    next.addEventListener('click', () => pin(row.position, row.next_token_id, `${tokenText(row.next_token)} after ${row.position}`));
    words.push(element('p', {}, `What follows has rank ${row.next_rank}:`), next);
  }
  if (row.kl !== null) words.push(element('p', {className: 'quiet', textContent: `KL from the last layer: ${row.kl.toFixed(3)} nats`}));
  figure.querySelector('aside').replaceChildren(...words);
  showPins();
}

function lensCell(figure, by, row) {
  const cell = element('td', {textContent: lensText(by, row), tabIndex: -1, dir: 'auto'});
  cell.style.setProperty('--sure', share(by, row));
  cell.dataset.pin = `${row.position}:${row.token_id}`;
  cell.setAttribute('role', 'gridcell');
  cell.addEventListener('pointerenter', () => tellCell(figure, row));
  cell.addEventListener('focus', () => {
    figure.querySelectorAll('td[tabindex="0"]').forEach((one) => { one.tabIndex = -1; });
    cell.tabIndex = 0;
    tellCell(figure, row);
  });
  cell.addEventListener('click', () => pin(row.position, row.token_id, `${tokenText(row.token)} after ${row.position}`));
  return cell;
}

/** Move the focus in a grid with the arrows; Enter and Space are clicks. */
function walkGrid(event) {
  const cell = event.target.closest('td');
  if (!cell) return;
  if (event.key === 'Enter' || event.key === ' ') cell.click();
  else {
    const [down, right] = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]}[event.key] ?? [];
    if (down === undefined) return;
    const row = cell.parentElement;
    row.parentElement.rows[row.sectionRowIndex + down]?.cells[cell.cellIndex + right]?.focus();
  }
  event.preventDefault();
}

custom.lens_cells = {
  uses: ['cells'],
  draw(figure, rows) {
    const by = choices.cells;
    figure.top = null;
    const byPlace = Map.groupBy(rows, (row) => row.position);
    const layers = [...new Set(rows.map((row) => row.layer))].sort((a, b) => a - b);
    const header = (text) => Object.assign(element('th', {scope: 'col', textContent: text}), {});
    const head = element('tr', {}, header('after'), ...layers.map(header));
    const body = [...byPlace].map(([position, own]) => {
      const cells = new Map(own.map((row) => [row.layer, row]));
      const name = element('th', {scope: 'row', title: `position ${position}`, dir: 'auto', textContent: tokenText(own[0].read)});
      return element('tr', {}, name, ...layers.map((layer) => (cells.has(layer) ? lensCell(figure, by, cells.get(layer)) : element('td'))));
    });
    const grid = element('table', {}, element('thead', {}, head), element('tbody', {}, ...body));
    grid.setAttribute('role', 'grid');
    grid.setAttribute('aria-label', 'Positions by layers');
    grid.addEventListener('keydown', walkGrid);
    const scale = lensScale[by].map(({text, row}) => {
      const one = element('span', {textContent: text});
      one.style.setProperty('--sure', share(by, row));
      return one;
    });
    const words = {probability: 'probability of the layer\'s first choice', kl: 'KL(layer ‖ last layer)', rank: 'rank of the token that follows'}[by];
    const side = element('aside', {}, element('p', {className: 'quiet', textContent: 'Point at a cell, or walk there with the arrows.'}));
    const before = figure.querySelector('.lens .scroll');
    figure.querySelector('.plot').replaceChildren(element('div', {className: 'lens'},
      element('div', {}, element('div', {className: 'scale'}, `${words}: `, ...scale), element('div', {className: 'scroll'}, grid)), side));
    if (before) Object.assign(figure.querySelector('.lens .scroll'), {scrollLeft: before.scrollLeft, scrollTop: before.scrollTop});
    const first = grid.querySelector('tbody td');
    if (first) first.tabIndex = 0;
    showPins();
  },
};
if (pinInput) document.addEventListener('input', (event) => { if (event.target === pinInput) showPins(); });
for (const control of document.querySelectorAll('select[data-go]')) control.addEventListener('change', () => control.form.requestSubmit());
