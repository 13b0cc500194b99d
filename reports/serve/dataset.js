// A dataset: its rows, found, sorted and paged by the server; their vectors as points, framed to choose rows.

const rowTable = document.getElementById('dataset-rows');
if (rowTable) {
  const PAGE = 50, COLUMNS = 12, CLASSES = 20;
  const byId = (id) => document.getElementById(id);
  const said = new URLSearchParams(location.search);
  const state = {find: said.get('find') ?? '', sort: said.get('sort') ?? '', way: said.get('way') ?? 'up', first: Number(said.get('first')) || 0,
    frame: said.get('frame')?.split(',').map(Number) ?? null, order: [], framed: null};
  if (state.frame?.length !== 4 || !state.frame.every(Number.isFinite)) state.frame = null;
  const columns = report.columns.slice(0, COLUMNS);
  const colourable = report.columns.filter((one) => one.labels > 1 && (one.is_number || one.labels <= CLASSES));
  const data = (name, values) => `/data/${name}?${new URLSearchParams([['run', report.run], ...values])}`;

  // The names of columns are a user's: they are set as properties, which keep every character.
  for (const one of [null, ...colourable]) byId('label')?.append(element('option', {value: one?.label_column ?? '', textContent: one?.label_column ?? 'nothing'}));
  if (byId('label') && colourable.length) byId('label').value = colourable[0].label_column;

  // --- rows

  const orderAddress = () => data('dataset_order', [['find', state.find], ['sort', state.sort], ['way', state.way]]);
  const shownRows = () => (state.framed ? state.order.filter((row) => state.framed.has(row)) : state.order);
  let asked = 0, shown = 0;
  const find = async () => {
    const own = asked += 1;
    try {
      const found = await table(orderAddress());
      if (own !== asked) return;
      state.order = [...found.columns.prompt_id];
      await showPage();
      plane()?.paint?.();
    } catch (error) {
      byId('row-count').textContent = error.message;
    }
  };
  const text = (value) => (value === null || value === undefined ? '–' : typeof value === 'object' ? JSON.stringify(value) : String(value));
  const cell = (value) => element('td', {className: typeof value === 'number' ? '' : 'left'}, element('div', {className: 'clip text', dir: 'auto', textContent: text(value), title: text(value)}));
  const line = ({prompt_id: prompt, row_id: name, text: words, fields}) => {
    const row = element('tr', {}, element('th', {scope: 'row', className: 'left'}));
    const open = element('button', {type: 'button', className: 'open', textContent: name ?? prompt, title: 'Look at this row'});
    open.addEventListener('click', () => look(prompt));
    open.addEventListener('pointerenter', () => plane()?.point?.(prompt));
    open.addEventListener('focus', () => plane()?.point?.(prompt));
    row.firstChild.append(open);
    row.dataset.prompt = prompt;
    const values = JSON.parse(fields);
    row.append(cell(words), ...columns.map((one) => cell(values[one.label_column])));
    return row;
  };
  const showPage = async () => {
    const rows = shownRows();
    state.first = Math.max(0, Math.min(state.first, PAGE * Math.floor((rows.length - 1) / PAGE)));
    const page = rows.slice(state.first, state.first + PAGE);
    const own = shown += 1;
    const found = page.length ? select(await table(data('dataset_rows', page.map((row) => ['prompts', row]))), {}) : [];
    if (own !== shown) return;
    const each = new Map(found.map((row) => [row.prompt_id, row]));
    rowTable.tBodies[0].replaceChildren(...page.filter((row) => each.has(row)).map((row) => line(each.get(row))));
    byId('rows-shown').textContent = rows.length ? `${state.first + 1}–${state.first + page.length} of ${rows.length}` : 'none';
    byId('row-count').textContent = [`${rows.length} row${rows.length === 1 ? '' : 's'}`, state.find ? `with “${state.find}”` : '', state.framed ? 'in the frame' : ''].filter(Boolean).join(' ');
    byId('rows-before').disabled = state.first === 0;
    byId('rows-after').disabled = state.first + PAGE >= rows.length;
    byId('all-rows').hidden = !state.framed;
    for (const form of ['csv', 'json', 'parquet']) byId(`rows-${form}`).href = asFile(data('dataset_rows', page.map((row) => ['prompts', row])), form);
    for (const name of ['find', 'sort', 'frame']) remember(name, name === 'frame' ? state.frame?.map((x) => Number(x.toPrecision(5))).join(',') ?? null : state[name]);
    remember('way', state.way === 'up' ? null : state.way);
    remember('first', state.first || null);
  };
  const head = () => {
    const button = (name, words, kind) => {
      const made = element('th', {scope: 'col', className: kind === 'number' ? '' : 'left'});
      made.ariaSort = state.sort !== name ? 'none' : state.way === 'down' ? 'descending' : 'ascending';
      const sort = element('button', {type: 'button', textContent: words + (state.sort === name ? (state.way === 'down' ? ' ↓' : ' ↑') : ''), title: `Sort by ${words}`});
      sort.addEventListener('click', () => {
        Object.assign(state, {way: state.sort === name && state.way === 'up' ? 'down' : 'up', sort: name, first: 0});
        head();
        rowTable.tHead.querySelectorAll('button')[name === '' ? 0 : 1 + columns.findIndex((one) => one.label_column === name)]?.focus();
        find();
      });
      made.append(sort);
      return made;
    };
    rowTable.tHead.replaceChildren(element('tr', {}, button('', 'row'), element('th', {scope: 'col', className: 'left', textContent: 'text'}),
      ...columns.map((one) => button(one.label_column, one.label_column, one.kind))));
  };
  const field = byId('row-filter').elements.find;
  field.value = state.find;
  let typed;
  field.addEventListener('input', () => { clearTimeout(typed); typed = setTimeout(() => { Object.assign(state, {find: field.value.trim(), first: 0}); find(); }, 150); });
  byId('row-filter').addEventListener('submit', (event) => event.preventDefault());
  const turnPage = (by) => { state.first += by; showPage(); };
  byId('rows-before').addEventListener('click', () => turnPage(-PAGE));
  byId('rows-after').addEventListener('click', () => turnPage(PAGE));
  byId('all-rows').addEventListener('click', () => plane()?.release());
  rowTable.addEventListener('keydown', (event) => {
    const buttons = [...rowTable.tBodies[0].querySelectorAll('.open')], at = buttons.indexOf(event.target);
    if (at < 0 || !['ArrowDown', 'ArrowUp'].includes(event.key)) return;
    buttons[at + (event.key === 'ArrowDown' ? 1 : -1)]?.focus();
    event.preventDefault();
    event.stopPropagation();
  });

  // --- one row

  const look = async (prompt, move = true) => {
    const section = byId('one-row');
    if (!section) return;
    const [row] = select(await table(data('dataset_rows', [['prompts', prompt]])), {});
    if (!row) return;
    section.hidden = false;
    byId('one-name').textContent = row.row_id ?? prompt;
    byId('one-text').textContent = row.text;
    byId('one-tensor').href = `/run/${encodeURIComponent(report.run)}/tensor?${new URLSearchParams({prompt, site: choices.site, layer: choices.layer})}`;
    const control = section.querySelector('[data-set="prompt"]');
    control.value = prompt;
    control.dispatchEvent(new Event('input', {bubbles: true}));
    plane()?.paint?.();
    if (move) section.scrollIntoView({block: 'start', behavior: 'smooth'});
  };
  custom.dataset_nearest = {
    uses: [],
    draw(figure, rows) {
      const body = rows.map((row) => {
        const open = element('button', {type: 'button', className: 'open', textContent: row.row_id ?? row.prompt_id});
        open.addEventListener('click', () => look(row.prompt_id));
        return element('tr', {}, element('th', {scope: 'row', className: 'left'}, open), element('td', {textContent: row.cosine?.toFixed(4) ?? '–'}), cell(row.text));
      });
      const heads = ['row', 'cosine', 'text'].map((name, n) => element('th', {scope: 'col', className: n === 1 ? '' : 'left', textContent: name}));
      figure.querySelector('.plot').replaceChildren(element('div', {className: 'scroll'}, element('table', {}, element('thead', {}, element('tr', {}, ...heads)), element('tbody', {}, ...body))));
    },
  };

  // --- what the picture (in plane.js) and the table tell each other

  const plane = () => document.querySelector('figure[data-chart="dataset_plane"]');
  rowTable.choosing = {
    state, look, colourable,
    frame(frame, prompts) {
      Object.assign(state, {frame, framed: prompts});
      if (state.order.length) showPage();
    },
    found: () => (state.find ? new Set(state.order) : null),
  };
  head();
  find();
  if (said.has('prompt')) addEventListener('load', () => look(Number(said.get('prompt')), false));
}
