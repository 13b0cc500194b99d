// Draws the report's charts from the packed tables, when they come into view, and moves them with the switches.
// `alab.embed` is vega-embed, bundled above inside the same function; nothing here reaches the global scope.
'use strict';

// A server's pages share what every page needs; a report has it all on the page.
const report = {...alab.registry, ...JSON.parse(document.getElementById('report').textContent)};
// What the switches say: the page's choices here, those of one card on its element.
const choices = {metric: 'cosine', site: report.sites[0] ?? 'hidden_out', scale: 'raw', compared: report.compared};
let printing = false;

// --- data ---------------------------------------------------------------------------------------------------

const tables = new Map();

/** One table as `{rows, columns}`, on the page or at an address of the server; got on first use, then kept. */
function table(name) {
  if (!tables.has(name)) {
    tables.set(name, name.startsWith('/') ? fetched(name) : inflate(document.getElementById(`data-${name}`).textContent));
  }
  return tables.get(name);
}

/** Something that went wrong in words for the reader. */
class Told extends Error {}

/** What the server answers; what it refuses is told. */
async function answered(address, options = {}) {
  const answer = await fetch(address, options);
  if (answer.ok) return answer;
  const {error, hint} = await answer.json();
  throw new Told([error, hint].filter(Boolean).join(' '));
}

/** The same, as JSON. */
const ask = async (address, options) => (await answered(address, options)).json();

/** A table of the server, with the query behind it. */
async function fetched(address, options) {
  try {
    const {query, values, ...data} = await ask(address, options);
    report.queries[address] = query;
    report.tables[address] = {query: address, values};
    return data;
  } catch (error) {
    tables.delete(address);  // the next look asks again
    throw error;
  }
}

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

async function inflate(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

/** A function from row number to value. Text columns are packed as a dictionary and codes. */
const reader = (column) => (column.codes ? (row) => column.values[column.codes[row]] ?? null : (row) => column[row]);

/** The rows that meet every condition of `where` (a value, or a list of them), as objects. */
function select(data, where) {
  const tests = Object.entries(where).map(([name, value]) => {
    const read = reader(data.columns[name]);
    return Array.isArray(value) ? (row) => value.includes(read(row)) : (row) => read(row) === value;
  });
  const readers = Object.entries(data.columns).map(([name, column]) => [name, reader(column)]);
  const found = [];
  for (let row = 0; row < data.rows; row += 1) {
    if (tests.every((test) => test(row))) found.push(Object.fromEntries(readers.map(([name, read]) => [name, read(row)])));
  }
  return found;
}

/** The value of a choice for an element: its card's own, else the page's. */
function choice(element, name) {
  const card = element.closest('[data-card]');
  return card?.choices?.[name] ?? choices[name];
}

/** The name of a figure's table; in an address `$name` is what is chosen. */
function source(figure) {
  return figure.dataset.table.replace(/\$(\w+)/g, (_, name) => encodeURIComponent(choice(figure, name) ?? ''));
}

/** The figure's conditions, with `$name` replaced by what is chosen. */
function conditions(figure) {
  const where = JSON.parse(figure.dataset.where || '{}');
  for (const [name, value] of Object.entries(where)) {
    if (typeof value === 'string' && value.startsWith('$')) where[name] = choice(figure, value.slice(1));
  }
  return where;
}

// --- SQL and copying ----------------------------------------------------------------------------------------

function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(', ')}]`;
  return typeof value === 'string' ? `'${value.replaceAll("'", "''")}'` : String(value);
}

/** The query that gives exactly the rows a figure shows. */
function sqlOf(figure) {
  const block = report.tables[source(figure)];
  const where = conditions(figure);
  const fill = (values) => Object.entries(values).reduce(
    (text, [name, value]) => text.replace(new RegExp(`\\$${name}\\b`, 'g'), () => literal(value)), report.queries[block.query]);
  const parts = block.each ?? [{...block.values}];
  if (where.run_id && parts[0].runs?.includes(where.run_id)) {
    parts[0].runs = [where.run_id];
    delete where.run_id;
  }
  const [comment, ...rest] = fill(parts[0]).split('\n');
  const body = [rest.join('\n'), ...parts.slice(1).map((values) => fill(values).split('\n').slice(1).join('\n'))];
  const tests = Object.entries(where).map(([name, value]) =>
    Array.isArray(value) ? `list_contains(${literal(value)}, ${name})` : `${name} = ${literal(value)}`);
  const text = body.length > 1 ? body.map((one) => `(${one.trim()})`).join('\nUNION ALL\n') : body[0].trim();
  const whole = tests.length ? `SELECT * FROM (\n${text}\n) WHERE ${tests.join(' AND ')}` : text;
  return `${comment}\n${whole};`;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(Object.assign(document.createElement('textarea'), {value: text}));
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  const label = button.textContent;
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = label; }, 1200);
}

function asTabs(rows) {
  if (!rows.length) return '';
  const names = Object.keys(rows[0]);
  const line = (row) => names.map((name) => String(row[name] ?? '').replace(/[\t\r\n]/g, ' ')).join('\t');
  return [names.join('\t'), ...rows.map(line)].join('\n');
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Give a figure its two buttons: the SQL behind it, and its rows for a spreadsheet. */
function addTools(figure) {
  const panel = element('div', {className: 'sql', hidden: true});
  const show = element('button', {type: 'button', textContent: 'SQL', title: 'Show the query behind this figure'});
  const data = element('button', {type: 'button', textContent: 'Copy data', title: 'Copy the rows, tab-separated'});
  show.setAttribute('aria-expanded', 'false');
  const turn = () => {
    panel.hidden = !panel.hidden;
    show.setAttribute('aria-expanded', String(!panel.hidden));
    const again = element('button', {type: 'button', textContent: 'Copy SQL'});
    again.addEventListener('click', () => copy(sqlOf(figure), again));
    panel.replaceChildren(element('pre', {textContent: sqlOf(figure)}), again);
  };
  // A server says the query with the rows.
  show.addEventListener('click', () => (figure.dataset.table.startsWith('/') ? table(source(figure)).then(turn) : turn()));
  data.addEventListener('click', async () => {
    const own = custom[figure.dataset.chart]?.rows?.(figure);
    copy(asTabs(await own ?? select(await table(source(figure)), conditions(figure))), data);
  });
  figure.append(element('div', {className: 'tools'}, show, data, ...downloads(figure)), panel);
}

/** Links to the rows as files, where a server has them. */
function downloads(figure) {
  if (!figure.dataset.table.startsWith('/')) return [];
  return ['csv', 'json', 'parquet'].map((form) => {
    const link = element('a', {textContent: form, title: `The rows as a ${form.toUpperCase()} file`, href: '#'});
    const point = () => { link.href = custom[figure.dataset.chart]?.file?.(figure, form) ?? asFile(source(figure), form); };
    link.addEventListener('focus', point);
    link.addEventListener('pointerenter', point);
    return link;
  });
}

const asFile = (address, form) => address.replace(/(?=\?|$)/, `.${form}`);

// --- charts -------------------------------------------------------------------------------------------------

const darkScreen = matchMedia('(prefers-color-scheme: dark)');
const theme = () => (darkScreen.matches && !printing ? 'dark' : 'light');

/** Vega's configuration, from the page's own custom properties so that both always agree. */
function config(width) {
  const style = getComputedStyle(document.documentElement);
  const css = (name) => style.getPropertyValue(`--${name}`).trim();
  const text = {labelColor: css('quiet'), titleColor: css('quiet'), labelFontSize: 11, titleFontSize: 11.5, titleFontWeight: 400};
  return {
    font: css('font'), background: 'transparent', padding: 4,
    view: {stroke: null}, mark: {aria: false},  // the figure says what it is: marks need no words of their own
    axis: {...text, gridColor: css('grid'), domainColor: css('line'), tickColor: css('line'), tickSize: 4,
      labelPadding: 4, titlePadding: 8, labelOverlap: 'parity', labelLimit: 150},
    axisY: {domain: false, ticks: false, tickCount: 5},
    legend: {...text, orient: 'top', symbolType: 'stroke', symbolStrokeWidth: 3, symbolSize: 160, offset: 6,
      labelLimit: 160, columns: width < 560 ? Math.max(1, Math.floor(width / 150)) : 0, columnPadding: 14, gradientThickness: 8, gradientLength: 150, labelFontSize: 11.5},
    title: {anchor: 'start', frame: 'bounds', color: css('ink'), subtitleColor: css('quiet'), fontSize: 13,
      fontWeight: 600, subtitleFontSize: 11.5, offset: 8, subtitlePadding: 3, limit: Math.max(width - 12, 120)},
    line: {strokeWidth: 2, strokeCap: 'round', strokeJoin: 'round'},
    rule: {color: css('quiet')}, text: {color: css('ink'), fontSize: 11}, bar: {cornerRadiusEnd: 1.5},
    range: {category: css('series').split(/\s*,\s*/), heatmap: {scheme: 'viridis'}, ramp: {scheme: 'viridis'}},
  };
}

/** The column that a chart draws: what its file says, or what the switches choose where it leaves that open. */
function measured(chart, all) {
  const {measure} = chart.usermeta;
  const name = typeof measure === 'string' ? measure : measure[all.scale];
  return name.startsWith('$') ? all[name.slice(1)] : name;
}

/** Every choice that concerns a figure, with the words for the column that it draws. */
function known(figure) {
  const all = {names: report.names, ...choices, ...figure.closest('[data-card]')?.choices,
    ...JSON.parse(figure.dataset.fix || '{}')};
  const chart = report.charts[figure.dataset.chart];
  if (!chart) return all;
  const field = measured(chart, all);
  const {title, reading, colour} = report.measures[field];
  return {...all, field, title, reading: chart.usermeta.channel === 'color' ? colour : reading};
}

/** Whether a chart has anything to draw: a row with a number in the column that it draws. */
function drawable(figure, rows) {
  const chart = report.charts[figure.dataset.chart];
  if (!chart) return rows.length > 0;
  const columns = chart.usermeta.columns ?? [known(figure).field];
  return rows.some((row) => columns.some((name) => row[name] !== null));
}

/** The least and the largest number of a chart, and of those that a reader compares it with: one scale for all. */
function extent(figure, tables, field) {
  const together = JSON.parse(figure.dataset.together || '{}');
  const where = {...conditions(figure), ...together};
  for (const [name, value] of Object.entries(together)) if (value === null) delete where[name];
  const values = tables.flatMap((one) => select(one, where).map((row) => row[field])).filter((value) => value !== null);
  return {low: values.reduce((a, b) => Math.min(a, b), Infinity), high: values.reduce((a, b) => Math.max(a, b), -Infinity)};
}

/** Give whatever has a colour of its own that colour, in a chart's every part: one definition for the whole page. */
function paint(part, rows, series) {
  if (part === null || typeof part !== 'object') return;
  const domain = part.field && report.scales[part.field];
  if (domain && part.type === 'nominal') {
    part.scale = {domain, range: domain.map((_, index) => series[index] ?? `hsl(${(index * 137.5) % 360} 50% 50%)`), ...part.scale};
    if (part.legend !== null) {
      const there = new Set(rows.map((row) => row[part.field]));
      const values = domain.filter((value) => there.has(value));
      if (values.length) part.legend = {values, ...part.legend};
    }
  }
}
function paintAll(spec, rows) {
  const css = getComputedStyle(document.documentElement).getPropertyValue('--series');
  const series = css.trim().split(/\s*,\s*/);
  for (const layer of [spec, ...spec.layer ?? []]) paint(layer.encoding?.color, rows, series);
}

/** The table of a figure, and those of figures that a reader compares it with. */
const compared = (figure) => Promise.all([source(figure), ...JSON.parse(figure.dataset.also || '[]')].map(table));

/** Draw a figure, or bring a drawn one up to date with the choices. */
async function draw(figure) {
  const turn = figure.turn = (figure.turn ?? 0) + 1;
  try {
    const rows = select(await table(source(figure)), conditions(figure));
    if (turn !== figure.turn) return;
    const some = drawable(figure, rows);
    figure.classList.toggle('empty', !some);
    if (figure.dataset.chart in custom) await custom[figure.dataset.chart].draw(figure, rows);
    else if (some) await drawChart(figure, rows, turn, await compared(figure));
    figure.dataset.state = some ? 'drawn' : 'empty';
  } catch (error) {
    figure.dataset.state = 'failed';
    if (error instanceof Told) figure.querySelector('.plot').replaceChildren(element('p', {className: 'note warn', textContent: error.message}));
    else console.error(`${figure.dataset.chart} of ${figure.dataset.table}: ${error?.stack ?? error}`);
  }
}

async function drawChart(figure, rows, turn, tables) {
  const plot = figure.querySelector('.plot');
  const chart = report.charts[figure.dataset.chart];
  const all = known(figure);
  if (chart.usermeta.shared) Object.assign(all, extent(figure, tables, all.field));
  const values = (chart.params ?? []).filter(({name}) => name in all).map(({name}) => [name, all[name]]);
  if (figure.dataset.rows) {
    const count = new Set(rows.map((row) => row[figure.dataset.rows])).size;
    const height = Math.round(Math.min(Math.max(count * figure.dataset.rowHeight, 60), 1500)) + 110;
    plot.style.setProperty('--height', `${height}px`);
  }
  if (figure.result && figure.drawnTheme === theme()) {
    const {view} = figure.result;
    for (const [name, value] of values) view.signal(name, value);
    view.data('rows', rows);
    view.resize();
    await view.runAsync();
    return;
  }
  figure.result?.finalize();
  const spec = structuredClone(chart);
  for (const one of spec.params ?? []) one.value = values.find(([name]) => name === one.name)?.[1] ?? one.value;
  spec.data = {name: 'rows', values: rows};
  paintAll(spec, rows);
  figure.drawnTheme = theme();
  const result = await alab.embed(plot, spec, {
    actions: false, renderer: 'svg', ast: true, config: config(plot.clientWidth), tooltip: {theme: theme()},
  });
  if (turn === figure.turn) figure.result = result;
  else result.finalize();
}

// --- figures that are not charts ----------------------------------------------------------------------------

/** By name: `uses`, the choices that move it, and `draw(figure, rows)`. Where the table behind it is not what it shows:
 *  `rows(figure)` to copy, and `file(figure, form)`, the address of a file. */
const custom = {};

// --- switches -----------------------------------------------------------------------------------------------

/** Whether a choice moves a figure. */
function uses(figure, name) {
  const {chart, table: address, where = '{}'} = figure.dataset;
  const own = JSON.parse(figure.dataset.fix || '{}');
  if (where.includes(`"$${name}"`) || new RegExp(`\\$${name}\\b`).test(address)) return true;
  if (chart in custom) return custom[chart].uses.includes(name);
  if (name in own) return false;
  const {params = [], usermeta} = report.charts[chart];
  const measures = typeof usermeta.measure === 'string' ? [usermeta.measure] : Object.values(usermeta.measure);
  return params.some((one) => one.name === name) || measures.includes(`$${name}`) || (name === 'scale' && measures.length > 1);
}

/** Redraw what is drawn below an element, or what of it a choice moves. */
function redraw(below, name = null) {
  const drawn = [...below.querySelectorAll('figure[data-state]')];
  return Promise.all(drawn.filter((figure) => name === null || uses(figure, name)).map(draw));
}

document.addEventListener('input', (event) => {
  const {set} = event.target.dataset;
  if (!set) return;
  const numeric = event.target.type === 'range' || 'number' in event.target.dataset;
  const value = numeric ? Number(event.target.value) : event.target.value;
  const card = event.target.closest('[data-card]');
  if (card) (card.choices ??= {})[set] = value;
  else choices[set] = value;
  redraw(card ?? document, set);
});

darkScreen.addEventListener('change', () => redraw(document));

// --- drawing when seen ------------------------------------------------------

const seen = new IntersectionObserver((entries) => {
  for (const {isIntersecting, target} of entries) {
    if (isIntersecting) {
      seen.unobserve(target);
      draw(target);
    }
  }
}, {rootMargin: '200px'});

/** Make what is below an element work: the choices of its cards, and its figures' buttons and drawing. */
function adopt(below) {
  const cards = [below, ...below.querySelectorAll('[data-choices]')];
  for (const card of cards.filter((one) => one.dataset?.choices)) card.choices ??= JSON.parse(card.dataset.choices);
  for (const box of below.querySelectorAll('.scroll')) box.tabIndex = 0;  // what scrolls is reached by keyboard
  for (const figure of below.querySelectorAll('figure[data-chart]')) {
    addTools(figure);
    seen.observe(figure);
  }
}

/** Give a card its content, which waits in a template until it is first opened: many runs load as fast as one. */
function unfold(card) {
  const template = card.querySelector(':scope > template');
  if (!template) return;
  template.replaceWith(template.content);
  adopt(card);
}

/** Open the folds around what the address names, as a link to a run's card does. */
function openTarget() {
  for (let at = document.getElementById(location.hash.slice(1)); at; at = at.parentElement?.closest('details')) at.open = true;
}
addEventListener('hashchange', openTarget);
adopt(document);
openTarget();
document.addEventListener('toggle', (event) => { if (event.target.open) unfold(event.target); }, true);
