// The search: what is asked for stands in the address, and figures show what is found.

/** A figure that the script makes; `custom[name]` draws it. */
function figureOf(name, address, title, how) {
  const figure = element('figure', {}, element('figcaption', {}, element('b', {textContent: title}), element('span', {className: 'how', textContent: how})),
    element('div', {className: 'plot auto', role: 'group', ariaLabel: title}));
  Object.assign(figure.dataset, {chart: name, table: address});
  return figure;
}

/** Rows that are found, each with a link to its place. */
function foundTable(figure, rows, columns, more = {}) {
  const total = rows[0]?.total;
  const body = rows.map((row) => element('tr', {}, ...columns.map(([, show], at) => {
    const content = show(row);
    const inside = at ? element('bdi', {textContent: content}) : element('a', {href: tokenAddress(row, more), textContent: content, dir: 'auto'});
    return element('td', {className: 'left'}, element('div', {className: 'clip wide-clip'}, inside));
  })));
  const head = element('tr', {}, ...columns.map(([name]) => element('th', {scope: 'col', className: 'left', textContent: name})));
  figure.querySelector('.plot').replaceChildren(...(total > rows.length ? [element('p', {className: 'quiet small', textContent: `The first ${rows.length} of ${total}.`})] : []),
    element('div', {className: 'scroll', tabIndex: 0}, element('table', {}, element('thead', {}, head), element('tbody', {}, ...body))));
}

const searchForm = document.getElementById('search');
if (searchForm) {
  const said = new URLSearchParams(location.search);
  const q = said.get('q') ?? '';
  const [layer, site, source] = ['layer', 'site', 'source'].map((name) => searchForm.elements[name]?.value);
  const run = ['run', (row) => row.run_id];
  const place = ['prompt · position', (row) => `${row.prompt_id} · ${row.position}`];
  const cosine = ['cosine', (row) => row.cosine?.toFixed(4) ?? '–'];
  const excerpt = ['text', (row) => row.excerpt || '(empty)'];
  const lists = {
    search_messages: [[excerpt, ['role', (row) => `${row.role} ${row.message_index}${row.is_generated ? ', generated' : ''}`], run], {find: q}],
    search_prompts: [[excerpt, ['row', (row) => row.row_id ?? row.prompt_id], run], {find: q}],
    search_tokens: [[['token', (row) => tokenText(row.token)], ['around it', (row) => row.excerpt], place, run], {}],
    near_prompts: [[excerpt, ['row', (row) => row.row_id ?? row.prompt_id], cosine, run], {layer, site}],
  };
  for (const [name, [columns, more]] of Object.entries(lists)) {
    custom[name] = {uses: [], draw(figure, rows) { foundTable(figure, rows, columns, more); }};
  }
  const kindOf = () => searchForm.querySelector('[name="kind"]:checked').value;
  const fit = () => {
    for (const one of searchForm.querySelectorAll('[data-kind]')) {
      one.hidden = !one.dataset.kind.split(' ').includes(kindOf());
      for (const field of one.querySelectorAll('input, select, textarea')) field.disabled = one.hidden;
    }
  };
  searchForm.addEventListener('change', fit);
  fit();

  const found = document.getElementById('found');
  const show = (...figures) => { found.replaceChildren(...figures); adopt(found); };
  const at = (name, values) => `/data/${name}?${new URLSearchParams(values)}`;
  const kind = kindOf();
  const searched = document.getElementById('search-said');
  if (q && kind === 'token') {
    show(figureOf('search_tokens', at('search_exact', {q}), 'Tokens', `Exactly “${q}”, with or without a space before it.`));
  } else if (q && kind === 'text') {
    show(...[['search_messages', 'Messages', 'Messages that contain it, whatever the case.'], ['search_prompts', 'Rows of datasets', 'Their text or id contains it.'],
      ['search_tokens', 'Tokens', 'Single tokens that contain it.']].map(([name, title, how]) => figureOf(name, at(name, {q}), title, how)));
  }
  const values = {layer, site};
  let ways = null;
  if (kind === 'vector' && searchForm.elements.run) {
    for (const name of ['run', 'prompt', 'position']) values[name] = searchForm.elements[name].value;
    ways = ['token_nearest', 'search_near_prompts'];
  } else if (kind === 'vector' && said.get('vector')) {
    values.vector = said.get('vector');
    ways = ['search_vector', 'search_vector_prompts'];
  }
  if (ways && searchForm.elements.layer) {
    Object.assign(choices, {of_layer: layer, of_site: site});
    const tokens = figureOf('token_nearest', at(ways[0], values), 'Nearest tokens', `Cosine of their vector with this one, ${site}, layer ${layer}, over all runs.`);
    const near = document.getElementById('near');
    near.hidden = false;
    near.append(tokens);
    adopt(near);
    lakeLook(near, tokens, () => draw(tokens)).ask({layer, site});
    if (source) show(figureOf('near_prompts', at(ways[1], {...values, source}), 'Nearest rows', `Cosine of the vector of each row of ${source} with this one, ${site}, layer ${layer}.`));
  }

  searchForm.addEventListener('submit', (event) => {
    const field = searchForm.elements.vector;
    if (kindOf() !== 'vector' || !field || field.disabled) return;
    const numbers = field.value.match(/[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/gi) ?? [];
    if (numbers.length) field.value = `[${numbers.map((text) => String(Number(Number(text).toPrecision(6)))).join(',')}]`;
    else {
      searched.textContent = 'The vector has no numbers.';
      event.preventDefault();
    }
  });
}
