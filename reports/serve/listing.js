// A figure that is a list: the rows of its query as they are.

const listed = (value) => (value === null ? '–' : typeof value !== 'number' ? tokenText(String(value)).replace(/␣/g, ' ')
  : Number.isInteger(value) ? String(value) : value.toPrecision(4));

custom.listing = {
  uses: [],
  draw(figure, rows) {
    const names = Object.keys(rows[0] ?? {});
    const side = (name) => (rows.some((row) => typeof row[name] === 'string') ? 'left' : '');
    const head = element('tr', {}, ...names.map((name) => element('th', {scope: 'col', textContent: name, className: side(name)})));
    const body = rows.map((row) => element('tr', {}, ...names.map((name) => element('td', {textContent: listed(row[name]), dir: 'auto', className: side(name)}))));
    figure.querySelector('.plot').replaceChildren(element('div', {className: 'scroll', tabIndex: 0},
      element('table', {}, element('thead', {}, head), element('tbody', {}, ...body))));
  },
};
