// What the colours of tokens say: their words, the scale, and the legend.

/** The words for each way to colour: `title` and `how`, and the unit of its numbers. */
const COLOURINGS = {
  norm: {title: ({site, layer}) => `Length of ${site}, layer ${layer}`,
    how: () => 'Euclidean length of each token’s vector. First tokens are often many times as long as others.', name: 'length'},
  surprise: {title: () => 'Surprise', name: 'surprise, nats',
    how: () => 'Minus the log-probability of each token after all before it, nats: 0 was certain. The first has none.'},
  entropy: {title: () => 'Entropy of what follows', name: 'entropy, nats',
    how: () => 'Entropy of the model’s distribution over what follows each token, nats: 0 is certain.'},
  cosine: {title: ({site, layer}) => `Cosine with the locked token, ${site}, layer ${layer}`, name: 'cosine',
    how: () => '1 points the same way as the locked token’s vector, 0 is at right angles to it.'},
  neuron: {title: ({site, layer, neuron}) => `Dimension ${neuron} of ${site}, layer ${layer}`, name: 'value',
    how: () => 'The value of that one dimension of each token’s vector.'},
  reference: {title: ({low_label, high_label, site, layer}) => `From ${low_label} to ${high_label}: ${site}, layer ${layer}`, name: 'projection',
    how: (all, rows) => `How far each token’s vector reaches along the line between the two references: 0 is midway, they lie at ±${shortNumber(rows[0]?.positive_end)}. Dashed: a vector of extreme length, which reaches far along any line.`},
  label: {title: ({label_column, low_value, high_value, site, layer}) => `${label_column}, from ${low_value} to ${high_value}: ${site}, layer ${layer}`, name: 'projection',
    how: ({source}) => `How far each token’s vector reaches along the difference of the two labels’ mean vectors in ${source}; 0 is not at all.`},
  none: {title: () => 'Tokens', how: () => '', name: ''},
};

/** A number in few characters. */
function shortNumber(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  return size !== 0 && (size < 0.01 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** The ends of the colours: the 2nd and 98th of a hundred tokens, about 0 alike on both sides where there are both signs. */
function scaleOf(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = [at(0.02), at(0.98)];
  const bound = Math.max(-low, high);
  return low < 0 && high > 0 ? {low: -bound, high: bound, signed: true} : {low, high, signed: false};
}

/** How strong a value's colour is, percent, and whether it is that of the low end. */
function toneOf(value, {low, high, signed}) {
  const share = signed ? Math.abs(value) / high : high > low ? (value - low) / (high - low) : 1;
  return {share: Math.round(100 * Math.min(1, Math.max(0, share))), low: signed && value < 0};
}

/** The legend: the colours with the numbers at their ends, and what lies beyond or has none. */
function legendOf(rows, scale, name, held, total) {
  const values = rows.map((row) => row.value).filter((value) => value !== null);
  const beyond = values.filter((value) => value < scale.low || value > scale.high).length;
  const bar = element('span', {className: `ramp${scale.signed ? ' signed' : ''}`});
  const notes = [
    held ? 'the scale is held' : 'ends at the 2nd and 98th of a hundred tokens',
    beyond ? `${beyond} beyond, from ${shortNumber(Math.min(...values))} to ${shortNumber(Math.max(...values))}` : '',
    total > values.length ? `${total - values.length} without one` : '',
  ];
  return element('p', {className: 'legend'}, element('span', {textContent: name}), element('span', {textContent: shortNumber(scale.low)}), bar,
    element('span', {textContent: shortNumber(scale.high)}), element('span', {className: 'quiet', textContent: notes.filter(Boolean).join('; ')}));
}

/** The ends that the address says the scale is held at. */
function heldScale(said) {
  const [low, high] = ['low', 'high'].map((end) => (said.has(end) ? Number(said.get(end)) : NaN));
  return high > low ? {low, high, signed: low === -high} : null;
}

/** Fill the lists of a dataset's labels, with what is chosen or said where it is there. */
async function fillLabels(control, said) {
  const rows = select(await table(`/data/label_choices?${new URLSearchParams({source: choices.source})}`), {});
  const fill = (name, options, index) => {
    const wanted = [choices[name], said.get(name)].find((one) => options.includes(one)) ?? options[index] ?? '';
    control(name).replaceChildren(...options.map((text) => element('option', {textContent: text})));
    choices[name] = control(name).value = wanted;
  };
  fill('label_column', [...new Set(rows.map((row) => row.label_column))], 0);
  const labels = rows.filter((row) => row.label_column === choices.label_column).map((row) => row.label);
  fill('low_value', labels, 1);
  fill('high_value', labels, 0);
}

/** Where the values of the chosen colours are; null where a choice is missing. */
function colourAddress(address, locked) {
  const {colour, layer, site, neuron, source, label_column, low_label, high_label, low_value, high_value} = choices;
  const at = {layer, site};
  if (colour === 'norm') return address('token_norm', at);
  if (colour === 'surprise' || colour === 'entropy') return address(`token_${colour}`, {});
  if (colour === 'neuron') return address('token_neuron', {...at, neuron});
  if (colour === 'cosine' && locked !== null) return address('token_cosine', {...at, position: locked});
  if (colour === 'reference') return address('token_reference', {...at, positive: high_label, negative: low_label});
  if (colour === 'label' && high_value) return address('token_label', {...at, source, label_column, positive: high_value, negative: low_value});
  return null;
}

/**
 * The colours of the tokens of a page (see `tokensPage`).
 *
 * Gives `again()`, after another choice, `hold(is)`, and `value(position)` as text.
 */
function tokenColours(figure, controls, page) {
  const control = (name) => controls.querySelector(`[data-set="${name}"]`);
  const said = new URLSearchParams(location.search);
  const words = figure.dataset.table;
  let held = heldScale(said);
  let scale = held;
  let values = new Map();
  document.getElementById('hold').checked = held !== null;
  custom.tokens = {
    uses: [],
    draw(_, rows) {
      const way = COLOURINGS[choices.colour] ?? COLOURINGS.none;
      values = new Map(rows.filter(({value}) => (value ?? null) !== null).map((row) => [row.position, row]));
      scale = held ?? scaleOf([...values.values()].map(({value}) => value));
      document.getElementById('colour-title').textContent = way.title(choices);
      document.getElementById('colour-how').textContent = way.how(choices, rows);
      const missing = choices.colour === 'none' ? '' : choices.colour === 'cosine' && page.locked === null
        ? 'Lock a token to compare the others with: click one.' : 'Nothing was captured for this choice.';
      figure.querySelector('.plot').replaceChildren(values.size ? legendOf(rows, scale, way.name, held !== null, page.tokens.length)
        : element('p', {className: 'legend quiet', textContent: missing}));
      page.list.paint(new Map([...values].map(([position, row]) => [position, {...toneOf(row.value, scale), mark: row.is_extreme}])));
    },
  };
  const again = oneAtATime(async () => {
    for (const one of controls.querySelectorAll('[data-for]')) one.hidden = one.dataset.for !== choices.colour;
    if (choices.colour === 'label') await fillLabels(control, said).catch(() => {});  // the figure says what is missing
    figure.dataset.table = colourAddress(page.address, page.locked) ?? words;
    await draw(figure);
    if (figure.dataset.state === 'failed') page.list.paint(values = new Map());
  });
  return {
    again,
    hold(is) {
      held = is ? scale : null;
      for (const end of ['low', 'high']) remember(end, held ? held[end] : null);
      again();
    },
    value: (position) => (values.has(position) ? shortNumber(values.get(position).value) : null),
  };
}
