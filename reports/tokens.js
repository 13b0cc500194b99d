// The two figures that are tables of tokens: the reply as shaded tokens, and the top-k explorer.

/** A token with its white space visible, since a leading space is part of it. */
function tokenText(token) {
  return (token ?? '').replace(/ /g, '␣').replace(/\r/g, '␍').replace(/\n/g, '⏎').replace(/\t/g, '⇥') || '∅';
}

const percent = (value) => (value >= 0.9995 ? '100%' : value >= 0.0995 ? `${(100 * value).toFixed(0)}%`
  : value >= 0.001 ? `${(100 * value).toFixed(1)}%` : '<0.1%');

/** Choose a step in a figure's card, and move the slider with it. */
function chooseStep(figure, step) {
  const slider = figure.closest('[data-card]').querySelector('input[data-set="step"]');
  slider.value = step;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
}

custom.reply = {
  uses: ['step'],
  draw(figure, rows) {
    const step = choice(figure, 'step') ?? 0;
    const tokens = rows.filter((row) => row.token !== null).map((row) => {
      const button = element('button', {
        type: 'button', className: 'token', textContent: tokenText(row.token), ariaPressed: String(row.step === step),
        title: `pass ${row.step}: likeliest token ${percent(row.top1_prob)}, entropy ${row.entropy?.toFixed(2)} nats`,
      });
      button.dir = 'auto';
      button.style.setProperty('--doubt', `${Math.round(100 * (1 - (row.top1_prob ?? 1)))}%`);
      button.addEventListener('click', () => chooseStep(figure, row.step));
      return button;
    });
    figure.querySelector('.plot').replaceChildren(element('div', {className: 'reply'}, ...tokens));
  },
};

custom.topk = {
  uses: ['step'],
  draw(figure, rows) {
    const plot = figure.querySelector('.plot');
    const step = choice(figure, 'step') ?? 0;
    const steps = [...new Set(rows.map((row) => row.step))];
    const fit = Math.max(1, Math.min(9, Math.floor((plot.clientWidth - 40) / 112)));
    const first = Math.max(0, Math.min(steps.indexOf(step) - Math.floor(fit / 2), steps.length - fit));
    const shown = steps.slice(first, first + fit);
    const cells = new Map(rows.map((row) => [`${row.rank} ${row.step}`, row]));
    const ranks = [...new Set(rows.map((row) => row.rank))].sort((a, b) => a - b);
    const head = element('tr', {}, element('th', {textContent: 'rank'}));
    for (const one of shown) {
      const button = element('button', {type: 'button', textContent: one === 0 ? 'prefill' : `pass ${one}`});
      button.addEventListener('click', () => chooseStep(figure, one));
      head.append(element('th', {scope: 'col', className: one === step ? 'chosen' : ''}, button));
    }
    const body = ranks.map((rank) => element('tr', {}, element('th', {scope: 'row', textContent: rank + 1}),
      ...shown.map((one) => {
        const row = cells.get(`${rank} ${one}`);
        const cell = element('td', {className: one === step ? 'chosen' : ''});
        if (!row) return cell;
        const token = element('span', {className: 'token', textContent: tokenText(row.token), title: row.token});
        token.dir = 'auto';
        cell.append(token, element('span', {className: 'share', textContent: percent(row.probability)}));
        cell.style.setProperty('--share', `${100 * row.probability}%`);
        return cell;
      })));
    plot.replaceChildren(element('table', {className: 'topk'}, element('thead', {}, head), element('tbody', {}, ...body)));
    const output = figure.closest('[data-card]').querySelector('output[data-of="step"]');
    if (output) output.textContent = step === 0 ? 'prefill' : `pass ${step}`;
  },
};
