// Figures about one token that are short tables: a name, a number, and a bar as long as the number.

/** What the page does when a table asks for it: `lock(position)`, `arcs(rows)`, `colourBy(dimension)`. */
const tokenActs = {};

/** A table of `{name, number, share, act, title}`; what can be clicked is a button. */
function shortTable(figure, rows) {
  const body = rows.map(({name, number, share, act, title = '', note = ''}) => {
    const label = element(act ? 'button' : 'span', {className: 'token', textContent: name, title});
    if (act) {
      label.type = 'button';
      label.addEventListener('click', act);
    }
    label.dir = 'auto';
    const cell = element('td', {}, label, element('span', {className: 'quiet note-of', textContent: note}), element('span', {className: 'share', textContent: number}));
    cell.style.setProperty('--share', `${Math.round(100 * Math.max(0, Math.min(1, share)))}%`);
    return element('tr', {}, cell);
  });
  figure.querySelector('.plot').replaceChildren(element('table', {className: 'short'}, element('tbody', {}, ...body)));
}

/** Where a token's own page is. */
function tokenAddress({run_id, prompt_id, position}, more = {}) {
  const values = new URLSearchParams({prompt: prompt_id, position, ...more});
  return `/run/${encodeURIComponent(run_id)}/tokens?${values}`;
}

custom.token_top = {
  uses: [],
  draw(figure, rows) {
    const first = rows[0];
    const own = first?.after_position === choices.of_position;
    figure.querySelector('.how').textContent = !first || own ? 'Probabilities after the pass that read this token.'
      : `Probabilities after the whole pass that read this token, which ended at position ${first.after_position}.`;
    shortTable(figure, rows.map((row) => ({name: tokenText(row.token), number: percent(row.probability), share: row.probability})));
  },
};

custom.token_attention = {
  uses: [],
  draw(figure, rows) {
    shortTable(figure, rows.slice(0, 8).map((row) => ({name: tokenText(row.token), number: percent(row.weight), share: row.weight,
      note: ` at ${row.position}`, act: () => tokenActs.lock(row.position)})));
    tokenActs.arcs(rows.filter(({weight}) => weight >= 0.01).slice(0, 40));
  },
};

custom.token_promotes = {
  uses: [],
  draw(figure, rows) {
    const most = Math.max(...rows.map(({score}) => Math.abs(score)));
    shortTable(figure, rows.map((row) => ({name: tokenText(row.token), number: shortNumber(row.score), share: row.score / (most || 1)})));
  },
};

custom.token_dims = {
  uses: [],
  draw(figure, rows) {
    const most = Math.max(...rows.map(({value}) => Math.abs(value)));
    shortTable(figure, rows.map(({dim, value}) => ({name: String(dim), number: shortNumber(value), share: Math.abs(value) / (most || 1),
      title: `colour the tokens by dimension ${dim}`, act: () => tokenActs.colourBy(dim)})));
  },
};

custom.token_nearest = {
  uses: [],
  draw(figure, rows) {
    const where = {layer: choices.of_layer, site: choices.of_site};
    const body = rows.map((row) => {
      const link = element('a', {href: tokenAddress(row, where), textContent: tokenText(row.token)});
      link.className = 'token';
      link.dir = 'auto';
      return element('tr', {}, element('td', {}, link), element('td', {}, element('bdi', {textContent: row.run_id})),
        element('td', {textContent: `${row.prompt_id} · ${row.position}`}), element('td', {textContent: row.cosine?.toFixed(4) ?? '–'}));
    });
    const head = ['token', 'run', 'prompt · position', 'cosine'].map((name) => element('th', {scope: 'col', textContent: name}));
    figure.querySelector('.plot').replaceChildren(element('div', {className: 'scroll', tabIndex: 0},
      element('table', {className: 'dense near'}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))));
  },
};

custom.token_lens = {
  uses: [],
  draw(figure, rows) {
    const layers = [...new Set(rows.map(({layer}) => layer))].sort((a, b) => b - a);
    const head = ['layer', 'first', 'second', 'KL'].map((name) => element('th', {scope: 'col', textContent: name}));
    const body = layers.map((layer) => {
      const said = rows.filter((row) => row.layer === layer);
      const cells = [0, 1].map((rank) => {
        const row = said.find((one) => one.rank === rank);
        const cell = element('td', {}, element('span', {className: 'token', textContent: row ? tokenText(row.token) : '', dir: 'auto'}),
          element('span', {className: 'share', textContent: row ? percent(row.probability) : ''}));
        cell.style.setProperty('--share', `${Math.round(100 * (row?.probability ?? 0))}%`);
        return cell;
      });
      const line = element('tr', {className: layer === choices.of_layer ? 'chosen' : ''}, element('th', {scope: 'row', textContent: layer}), ...cells,
        element('td', {textContent: shortNumber(said[0].kl)}));
      return line;
    });
    figure.querySelector('.plot').replaceChildren(element('div', {className: 'scroll tall', tabIndex: 0},
      element('table', {className: 'short lens'}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))));
  },
};
