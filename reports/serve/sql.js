// The editor: runs what is in it when asked to, never by itself.

const queryForm = document.getElementById('query');
if (queryForm) {
  const said = document.getElementById('said');
  const place = document.getElementById('rows');
  const text = (value) => (value === null ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value));
  const show = ({names, cells, cut, limit, hints}) => {
    const head = element('tr', {}, ...names.map((name) => element('th', {scope: 'col', textContent: name})));
    const body = cells.map((row) => element('tr', {}, ...row.map((value) => element('td', {textContent: text(value)}))));
    place.replaceChildren(element('div', {className: 'scroll', tabIndex: 0},
      element('table', {}, element('thead', {}, head), element('tbody', {}, ...body))));
    said.textContent = [cut ? `the first ${limit} rows; there are more` : `${cells.length} rows`, ...hints].join(' · ');
  };
  queryForm.addEventListener('submit', async (event) => {
    event.preventDefault();
    const sql = queryForm.elements.sql.value;
    remember('q', sql);
    said.textContent = 'running …';
    try {
      show(await send('/api/sql', {sql}));
    } catch (error) {
      said.textContent = error.message;
    }
  });
  queryForm.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) queryForm.requestSubmit();
  });
}
