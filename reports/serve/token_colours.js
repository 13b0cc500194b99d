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
    how: (all, rows) => `How far each token’s vector reaches along the line between the two references: 0 is midway, they lie at ±${brief(rows[0]?.positive_end)}. Dashed: a vector of extreme length, which reaches far along any line.`},
  label: {title: ({column, low_value, high_value, site, layer}) => `${column}, from ${low_value} to ${high_value}: ${site}, layer ${layer}`, name: 'projection',
    how: ({source}) => `How far each token’s vector reaches along the difference of the two labels’ mean vectors in ${source}; 0 is not at all.`},
  none: {title: () => 'Tokens', how: () => '', name: ''},
};

/** A number in few characters. */
function brief(value) {
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
  const share = signed ? Math.abs(value) / high : (value - low) / (high - low || 1);
  return {share: Math.round(100 * Math.min(1, Math.max(0, share))), low: signed && value < 0};
}

/** The legend: the colours with the numbers at their ends, and what lies beyond or has none. */
function legendOf(rows, scale, name, held, total) {
  const values = rows.map((row) => row.value).filter((value) => value !== null);
  const beyond = values.filter((value) => value < scale.low || value > scale.high).length;
  const bar = element('span', {className: `ramp${scale.signed ? ' signed' : ''}`});
  const notes = [
    held ? 'the scale is held' : 'ends at the 2nd and 98th of a hundred tokens',
    beyond ? `${beyond} beyond, from ${brief(Math.min(...values))} to ${brief(Math.max(...values))}` : '',
    total > values.length ? `${total - values.length} without one` : '',
  ];
  return element('p', {className: 'legend'}, element('span', {textContent: name}), element('span', {textContent: brief(scale.low)}), bar,
    element('span', {textContent: brief(scale.high)}), element('span', {className: 'quiet', textContent: notes.filter(Boolean).join('; ')}));
}
