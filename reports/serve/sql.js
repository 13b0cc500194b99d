// The editor: runs what is in it when asked to, never by itself; a link to this page fills it, no more.

if (document.getElementById('query')) {
  const form = document.getElementById('query');
  const field = form.elements.sql;
  const by = (id) => document.getElementById(id);
  const {objects} = report;
  let answer = null;
  let running = null;

  // --- running ----------------------------------------------------------------------------------------------

  /** Names after a `$` that are in no string, quoted name or comment. */
  const parametersOf = (sql) => {
    const bare = sql.replace(/'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|\/\*[\s\S]*?\*\//g, ' ');
    return [...new Set([...bare.matchAll(/\$([A-Za-z_]\w*)/g)].map(([, name]) => name))];
  };

  /** What is written in a field, in JSON: a number (with all its digits), a list or an object as it is, else a text. */
  const jsonOf = (text) => {
    try {
      if (/^\s*(?:-?\d|\[|\{|true$|false$|null$)/.test(text) && JSON.parse(text) !== undefined) return text;
    } catch {}  // a date begins with a digit too
    return JSON.stringify(text);
  };

  const fields = () => [...by('params').querySelectorAll('input')];

  /** A field for each parameter, with the value that is given, that it had, or that the address says. */
  function offerParameters(given = []) {
    const there = new Map([...fields().map((one) => [one.name, one.value]), ...given]);
    const names = parametersOf(field.value);
    const said = new URLSearchParams(location.search);
    const value = (name) => there.get(name) ?? said.get(`$${name}`) ?? '';
    if (names.join() === fields().map((one) => one.name).join()) for (const one of fields()) one.value = value(one.name);
    else by('params').replaceChildren(...names.map((name) => element('label', {}, element('span', {textContent: `$${name}`}), ' ',
      element('input', {name, value: value(name), autocomplete: 'off'}))));
  }

  /** What the editor holds: the query, its parameters as they are written, and both as the server takes them. */
  function request() {
    const sql = field.value;
    const values = fields().map((one) => [one.name, one.value]);
    const params = values.map(([name, text]) => `${JSON.stringify(name)}: ${jsonOf(text)}`);
    return {sql, values, body: `{"sql": ${JSON.stringify(sql)}, "params": {${params.join(', ')}}}`};
  }

  /** Put what is asked into the address, unless it is too long for one. */
  function rememberAsked({sql, values, body}) {
    const fits = body.length < 6000;
    for (const name of [...new URLSearchParams(location.search).keys()]) if (name.startsWith('$')) remember(name, null);
    remember('q', fits ? sql : null);
    for (const [name, text] of fits ? values : []) remember(`$${name}`, text);
  }

  function tell(problem) {
    by('problem').hidden = !problem;
    by('problem').textContent = problem;
  }

  async function run(event) {
    event?.preventDefault();
    if (!field.value.trim()) return;
    running?.abort();
    const own = running = new AbortController();
    const asked = request();
    rememberAsked(asked);
    by('stop').disabled = false;
    tell('');
    by('said').textContent = 'running …';
    const began = performance.now();
    try {
      answer = {...await ask('/api/sql', {...posted(asked.body), signal: own.signal}), asked};
      showAnswer(performance.now() - began);
      note(asked);
    } catch (error) {
      if (own !== running) return;
      answer = null;
      by('answer').hidden = true;  // rows of an older query would be taken for those of this one
      by('said').textContent = error.name === 'AbortError' ? 'stopped' : '';
      tell(error.name === 'AbortError' ? '' : error.message);
    } finally {
      if (own === running) by('stop').disabled = true;
    }
  }
  form.addEventListener('submit', run);
  by('stop').addEventListener('click', () => running?.abort());

  // --- rows -------------------------------------------------------------------------------------------------

  const isNumber = (type) => /^(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BIGNUM|FLOAT|DOUBLE|DECIMAL\(.*\))$/.test(type);

  function showAnswer(took) {
    const {names, types, cells, cut, limit, hints} = answer;
    const cell = (value, column) => element('td', {
      className: value === null ? 'null' : isNumber(types[column]) ? 'number' : '',
      textContent: value === null ? 'NULL' : String(value), title: value !== null && String(value).length > 60 ? String(value) : '', dir: 'auto',
    });
    const head = element('tr', {}, ...names.map((name, at) => element('th', {scope: 'col', className: isNumber(types[at]) ? 'number' : '', textContent: name, title: types[at]})));
    const body = cells.map((row) => element('tr', {}, ...row.map(cell)));
    by('rows').replaceChildren(element('table', {}, element('thead', {}, head), element('tbody', {}, ...body)));
    by('answer').hidden = false;
    const count = cut ? `the first ${limit.toLocaleString('en')} rows; there are more` : `${cells.length} row${cells.length === 1 ? '' : 's'}`;
    by('said').textContent = [`${count}, ${(took / 1000).toFixed(2)} s`, ...hints].join(' · ');
    offerChart();
  }

  for (const button of document.querySelectorAll('[data-file]')) {
    button.addEventListener('click', async () => {
      try {
        const got = await answered(`/api/sql.${button.dataset.file}`, posted(answer.asked.body));
        const link = element('a', {href: URL.createObjectURL(await got.blob()), download: `rows.${button.dataset.file}`});
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
        tell('');
      } catch (error) {
        tell(error.message);
      }
    });
  }

  // --- a chart of the rows ----------------------------------------------------------------------------------

  function offerChart() {
    const {names, types} = answer;
    const options = (some) => some.map((at) => element('option', {value: at, textContent: names[at]}));
    const all = names.map((_, at) => at);
    const numbers = all.filter((at) => isNumber(types[at]));
    const before = [by('across'), by('up'), by('by')].map((one) => one.selectedOptions[0]?.textContent);
    by('across').replaceChildren(...options(all));
    by('up').replaceChildren(...options(numbers));
    by('by').replaceChildren(element('option', {value: '', textContent: 'nothing'}), ...options(all));
    const across = names.indexOf('layer') >= 0 ? names.indexOf('layer') : all[0];
    by('across').value = across;
    by('up').value = numbers.filter((at) => at !== across).at(-1) ?? numbers[0];
    [by('across'), by('up'), by('by')].forEach((one, at) => {
      const same = [...one.options].find((option) => option.textContent === before[at]);
      if (same) one.value = same.value;
    });
    drawChart();
  }

  /** A number of a cell as a chart has it; large ones, NaN and infinity come as text. */
  const finite = (value) => (value === null || !Number.isFinite(Number(value)) ? null : Number(value));

  /** Why there is nothing to draw; empty where there is. */
  function undrawable(numbers) {
    const {names, cells} = answer;
    if (!cells.length) return 'There are no rows to draw.';
    if (by('up').value === '') return 'No column has numbers to draw.';
    if (cells.some((row) => numbers.every((at) => finite(row[at]) !== null))) return '';
    return `There are no numbers to draw in ${[...new Set(numbers.map((at) => names[at]))].join(' and ')}.`;
  }

  async function drawRows() {
    const mark = by('mark').value;
    const [x, y, c] = ['across', 'up', 'by'].map((id) => by(id).value);
    const {names, types, cells} = answer;
    const isNumeric = mark !== 'bars' && isNumber(types[x]);
    by('undrawn').textContent = mark && undrawable(isNumeric ? [x, y] : [y]);
    by('chart').hidden = !mark || by('undrawn').textContent !== '';
    if (by('chart').hidden) return;
    const spec = structuredClone(report.charts[`result_${mark}${isNumeric ? '' : '_of_names'}`]);
    const values = {title: `${names[y]} over ${names[x]}`, reading: c === '' ? '' : `colour: ${names[c]}`};
    for (const one of spec.params) one.value = values[one.name];
    if (c === '') {
      spec.encoding.color.legend = null;
      spec.encoding.tooltip.pop();
    }
    spec.data = {values: cells.map((row) => ({x: isNumeric ? finite(row[x]) : row[x], y: finite(row[y]), c: c === '' ? '' : String(row[c])}))};
    const plot = by('chart').querySelector('.plot');
    await alab.embed(plot, spec, {actions: false, renderer: 'canvas', ast: true, config: config(plot.clientWidth), tooltip: {theme: theme()}});
  }
  const drawChart = () => drawRows().catch((error) => { by('said').textContent = error.message; });
  for (const id of ['mark', 'across', 'up', 'by']) by(id).addEventListener('change', drawChart);
  darkScreen.addEventListener('change', () => { if (answer) drawChart(); });

  // --- what there is to ask ---------------------------------------------------------------------------------

  const usage = (one) => (['macro', 'analysis'].includes(one.kind) ? `${one.name}(${one.arguments ?? ''})` : one.name);

  function describe(one) {
    for (const button of by('objects').querySelectorAll('button')) button.setAttribute('aria-pressed', String(button.textContent === one.name));
    const insert = element('button', {type: 'button', textContent: 'Put it into the query'});
    insert.addEventListener('click', () => insertText(usage(one)));
    by('documentation').replaceChildren(element('h3', {textContent: usage(one)}),
      element('p', {className: 'quiet', textContent: one.kind}), insert, element('pre', {textContent: one.documentation ?? '', tabIndex: 0}));
  }

  function list() {
    const words = by('find').value.toLowerCase().split(/\s+/).filter(Boolean);
    const some = objects.filter((one) => words.every((word) => `${one.name} ${one.summary ?? ''}`.toLowerCase().includes(word)));
    by('objects').replaceChildren(...some.map((one) => {
      const button = element('button', {type: 'button', textContent: one.name, title: one.summary ?? ''});
      button.setAttribute('aria-pressed', 'false');
      button.addEventListener('click', () => describe(one));
      return element('li', {}, button);
    }));
  }
  by('find').addEventListener('input', list);

  // --- completion -------------------------------------------------------------------------------------------

  const completions = by('completions');
  const wordBefore = () => field.value.slice(0, field.selectionStart).match(/[A-Za-z_]\w*$/)?.[0] ?? '';
  const options = () => [...completions.children];

  function insertText(text, instead = '') {
    field.focus();
    field.setRangeText(text, field.selectionStart - instead.length, field.selectionEnd, 'end');
    field.dispatchEvent(new Event('input', {bubbles: true}));
    completions.hidden = true;
  }

  /** Where the caret stands in the field, roughly: its font has one width. */
  function place() {
    const lines = field.value.slice(0, field.selectionStart).split('\n');
    const line = parseFloat(getComputedStyle(field).lineHeight);
    completions.style.top = `${Math.min(lines.length * line + 10 - field.scrollTop, field.clientHeight)}px`;
    completions.style.left = `${Math.min(lines.at(-1).length * 8.3, Math.max(0, field.clientWidth - 300))}px`;
  }

  function complete(force) {
    const word = wordBefore();
    const start = word.toLowerCase();
    const some = word.length > 1 || force ? objects.filter(({name}) => name.startsWith(start) && name !== start).slice(0, 12) : [];
    completions.hidden = !some.length;
    completions.replaceChildren(...some.map((one, at) => {
      const item = element('li', {id: `completion-${at}`}, element('b', {textContent: one.name}), element('span', {textContent: one.summary ?? ''}));
      item.setAttribute('role', 'option');
      item.setAttribute('aria-selected', 'false');
      item.addEventListener('pointerdown', (event) => { event.preventDefault(); take(one); });
      item.object = one;
      return item;
    }));
    field.removeAttribute('aria-activedescendant');
    if (some.length) place();
  }

  function take(one) {
    insertText(['macro', 'analysis'].includes(one.kind) ? `${one.name}(` : one.name, wordBefore());
    describe(one);
  }

  function choose(step) {
    const all = options();
    const at = all.findIndex((one) => one.getAttribute('aria-selected') === 'true');
    const next = (at + step + all.length + (at < 0 && step < 0 ? 1 : 0)) % all.length;
    all.forEach((one, index) => one.setAttribute('aria-selected', String(index === next)));
    all[next].scrollIntoView({block: 'nearest'});
    field.setAttribute('aria-activedescendant', all[next].id);
  }

  field.addEventListener('input', () => { complete(false); offerParameters(); });
  field.addEventListener('blur', () => { completions.hidden = true; });
  field.addEventListener('keydown', (event) => {
    const chosen = options().find((one) => one.getAttribute('aria-selected') === 'true');
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) run(event);
    else if (event.key === ' ' && event.ctrlKey) complete(true);
    else if (completions.hidden) return;
    else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') choose(event.key === 'ArrowDown' ? 1 : -1);
    else if (event.key === 'Escape') completions.hidden = true;
    else if (event.key === 'Tab' && !event.shiftKey) take((chosen ?? options()[0]).object);
    else if (event.key === 'Enter' && chosen) take(chosen.object);
    else return;
    event.preventDefault();
  });

  // --- saved, and asked before ------------------------------------------------------------------------------

  const link = (sql, values = []) => {
    const text = [sql.replace(/\s+/g, ' '), ...values.map(([name, one]) => `$${name} = ${one}`)].join(' · ');
    const address = new URLSearchParams([['q', sql], ...values.map(([name, one]) => [`$${name}`, one])]);
    const made = element('a', {href: `/sql?${address}`, textContent: text, title: sql});
    made.addEventListener('click', (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      field.value = sql;
      offerParameters(values);
      field.focus();
    });
    return made;
  };

  function showSaved(some) {
    by('saved').replaceChildren(...some.map(({name, sql}) => {
      const drop = element('button', {type: 'button', textContent: 'Delete', ariaLabel: `Delete ${name}`});
      drop.addEventListener('click', () => keep({name, sql: ''}));
      return element('li', {}, element('b', {textContent: name}), link(sql), drop);
    }));
  }

  async function keep(body) {
    const told = by('save').querySelector('output');
    try {
      showSaved((await send('/api/queries', body)).saved);
      told.textContent = body.sql ? 'saved' : 'deleted';
    } catch (error) {
      told.textContent = error.message;
    }
  }
  by('save').addEventListener('submit', (event) => {
    event.preventDefault();
    if (field.value.trim()) keep({name: by('save').elements.name.value, sql: field.value});
  });

  const past = () => {
    try {
      return JSON.parse(localStorage.getItem('alab-queries')) ?? [];
    } catch {
      return [];
    }
  };
  // A query is kept as its text, or with the values of its parameters: [text, [[name, value], …]].
  const showHistory = () => by('history').replaceChildren(...past().map((one) => element('li', {}, link(...[one].flat()))));
  function note({sql, values}) {
    const own = values.length ? [sql, values] : sql;
    const others = past().filter((one) => JSON.stringify(one) !== JSON.stringify(own));
    try {
      localStorage.setItem('alab-queries', JSON.stringify([own, ...others].slice(0, 50)));
    } catch {}  // a browser may keep nothing: the answer is there all the same
    showHistory();
  }

  list();
  showSaved(JSON.parse(by('saved').dataset.saved));
  showHistory();
  offerParameters();
}
