// One dimension over all tokens: the text shaded by its value, and the dimensions to choose from.

custom.neuron_text = {
  uses: [],
  draw(figure, rows) {
    const most = rows.reduce((far, row) => Math.max(far, Math.abs(row.activation)), 0) || 1;
    const tokens = rows.map((row) => {
      const token = element('span', {className: `token ${row.activation < 0 ? 'below' : 'above'}`, textContent: tokenText(row.token),
        title: `${row.activation.toPrecision(4)} at position ${row.position}, pass ${row.step}`, dir: 'auto'});
      token.style.setProperty('--far', `${Math.round(100 * Math.abs(row.activation) / most)}%`);
      return token;
    });
    const scale = element('p', {className: 'quiet small', textContent: `full shade: ±${most.toPrecision(4)}`});
    figure.querySelector('.plot').replaceChildren(scale, element('div', {className: 'reply shaded', tabIndex: 0}, ...tokens));
  },
};

custom.neuron_peaks = {
  uses: [],
  draw(figure, rows) {
    const input = document.querySelector('#neuron [data-set="neuron"]');
    const buttons = rows.map((row) => {
      const button = element('button', {type: 'button', title: `${row.peak.toPrecision(4)} at position ${row.position}`, dir: 'auto'},
        element('b', {textContent: row.neuron}), ` ${row.peak.toPrecision(3)} `, element('span', {className: 'token', textContent: tokenText(row.token)}));
      button.addEventListener('click', () => {
        input.value = row.neuron;
        input.dispatchEvent(new Event('input', {bubbles: true}));
      });
      return button;
    });
    figure.querySelector('.plot').replaceChildren(element('div', {className: 'peaks'}, ...buttons));
  },
};

const neuronControls = document.getElementById('neuron');
if (neuronControls) {
  const site = neuronControls.querySelector('[data-set="site"]');
  const number = neuronControls.querySelector('[data-set="neuron"]');
  const narrow = () => { number.max = site.selectedOptions[0].dataset.width - 1; };
  site.addEventListener('input', narrow);
  narrow();
  addEventListener('keydown', (event) => {
    if (typing(event.target) || event.target.type === 'range' || !['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    if (event.key === 'ArrowLeft') number.stepDown();
    else number.stepUp();
    number.dispatchEvent(new Event('input', {bubbles: true}));
    event.preventDefault();
  });
}
