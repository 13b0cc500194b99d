// The page of tokens: what is chosen, what is pointed at, and what is locked.

/** Does some work, one at a time; of what is asked for meanwhile the last is done. */
function oneAtATime(work) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      await work();
    }
    running = false;
  };
}

async function tokensPage(figure) {
  const place = document.getElementById('conversation');
  const controls = document.getElementById('token-controls');
  const {run, prompt} = figure.dataset;
  const words = figure.dataset.table;
  const control = (name) => controls.querySelector(`[data-set="${name}"]`);
  const address = (name, values) => `/data/${name}?${new URLSearchParams({run, prompt, ...values})}`;
  const said = new URLSearchParams(location.search);
  for (const one of controls.querySelectorAll('select[data-set]')) {  // an address may say what there is not
    if (!one.value && one.options.length) one.selectedIndex = 0;
    choices[one.dataset.set] = 'number' in one.dataset ? Number(one.value) : one.value;
  }

  // --- colours ---
  let held = said.has('low') && said.has('high') ? {low: Number(said.get('low')), high: Number(said.get('high'))} : null;
  if (held) held.signed = held.low === -held.high;
  if (held && !(held.high > held.low)) held = null;
  document.getElementById('hold').checked = held !== null;
  let scale = null;
  let values = new Map();
  let locked = null;
  let list = null;
  let arcs = null;

  /** Where the values of the chosen colours are; that of the words alone where something is missing. */
  function colourAddress() {
    const {colour, layer, site, neuron, source, column} = choices;
    if (colour === 'norm') return address('token_norm', {layer, site});
    if (colour === 'surprise' || colour === 'entropy') return address(`token_${colour}`);
    if (colour === 'neuron') return address('token_neuron', {layer, site, neuron});
    if (colour === 'cosine' && locked !== null) return address('token_cosine', {layer, site, position: locked});
    const ends = colour === 'reference' ? [choices.high_label, choices.low_label] : [choices.high_value, choices.low_value];
    if (colour === 'reference') return address('token_reference', {layer, site, positive: ends[0], negative: ends[1]});
    if (colour === 'label' && column && ends[0]) return address('token_label', {layer, site, source, column, positive: ends[0], negative: ends[1]});
    return words;
  }
  custom.tokens = {
    uses: [],
    async draw(_, rows) {
      const way = COLOURINGS[choices.colour] ?? COLOURINGS.none;
      const some = rows.length > 0 && 'value' in rows[0];
      values = new Map(some ? rows.filter(({value}) => value !== null).map((row) => [row.position, row]) : []);
      scale = held ?? scaleOf(rows.map((row) => row.value ?? null));
      document.getElementById('colour-title').textContent = way.title(choices);
      document.getElementById('colour-how').textContent = way.how(choices, rows);
      const legend = values.size ? legendOf(rows, scale, way.name, held !== null, list.total)
        : element('p', {className: 'legend quiet', textContent: choices.colour === 'cosine' && locked === null
          ? 'Lock a token to compare the others with: click one.' : choices.colour === 'none' ? '' : 'Nothing was captured for this choice.'});
      figure.querySelector('.plot').replaceChildren(legend);
      list.paint(new Map([...values].map(([position, row]) => [position, {...toneOf(row.value, scale), mark: row.is_extreme}])));
    },
  };
  const colourAgain = oneAtATime(async () => {
    figure.dataset.table = colourAddress();
    for (const one of controls.querySelectorAll('[data-for]')) one.hidden = one.dataset.for !== choices.colour;
    await draw(figure);
  });
  const labelsAgain = async () => {
    if (!control('source')) return;
    const rows = select(await table(`/data/label_choices?${new URLSearchParams({source: choices.source})}`), {});
    const fill = (name, options, index) => {
      const box = control(name);
      box.replaceChildren(...options.map((text) => element('option', {textContent: text})));
      box.value = options.includes(choices[name]) ? choices[name] : options.includes(said.get(name)) ? said.get(name) : options[index] ?? '';
      choices[name] = box.value;
    };
    fill('column', [...new Set(rows.map((row) => row.label_column))], 0);
    const labels = rows.filter((row) => row.label_column === choices.column).map((row) => row.label);
    fill('low_value', labels, 1);
    fill('high_value', labels, 0);
  };

  // --- one token ---
  const panel = document.getElementById('locked');
  const figures = [...panel.querySelectorAll('figure[data-chart]')];
  const drawers = new Map(figures.map((one) => [one, oneAtATime(() => draw(one))]));
  const nearFigure = panel.querySelector('figure[data-chart="token_nearest"]');
  const near = nearFigure && lakeLook(document.getElementById('near'), nearFigure, drawers.get(nearFigure));
  let tokens = [];
  let lens = new Map();
  const preview = document.getElementById('preview');

  /** What is known of a token without asking. */
  function tell(position) {
    const token = tokens[position - tokens[0]?.position];
    if (!token) return;
    const way = COLOURINGS[choices.colour];
    const value = values.get(position)?.value;
    const layer = lens.get(position);
    const facts = [
      ['', `position ${position}, id ${token.token_id}`],
      ['', `${token.role ?? 'added by the tokenizer'}${token.message_index === null ? '' : `, message ${token.message_index}`}${token.is_template ? ', template' : ''}${token.is_generated ? ', generated' : ''}`],
      ['', token.step === null ? 'no pass read it' : token.step === 0 ? 'read by the prefill' : `read by pass ${token.step}`],
      [way?.name, value === undefined ? null : brief(value)],
      ['after it', token.likeliest === null ? null : `${tokenText(token.likeliest)} ${percent(token.top1_prob)}`],
      [`layer ${choices.layer} would say`, layer ? `${tokenText(layer.token)} ${percent(layer.probability)}` : null],
    ];
    const name = element('span', {className: 'token state', textContent: tokenText(token.token), dir: 'auto'});
    const lines = facts.filter(([, text]) => text !== null).map(([title, text]) => element('span', {}, title ? element('i', {textContent: `${title} `}) : '', element('bdi', {textContent: text})));
    preview.replaceChildren(element('p', {}, name, position === locked ? element('span', {className: 'badge', textContent: 'locked'}) : ''), element('p', {className: 'small facts-of'}, ...lines));
  }
  /** Look at a token, and keep looking until told else. */
  function lock(position, showIt = false) {
    if (position !== null && !tokens.some((one) => one.position === position)) return;
    locked = position;
    panel.hidden = position === null;
    list.lock(position);
    remember('position', position);
    if (position !== null) tell(position);
    if (position !== null && showIt) list.show(position);
    aboutIt();
    if (choices.colour === 'cosine') colourAgain();
  }
  /** Bring what is said of the locked token up to date. */
  function aboutIt() {
    arcs.clear();
    if (locked === null) return;
    const {layer, site, head} = choices;
    Object.assign(choices, {of_position: locked, of_layer: layer ?? '', of_site: site, of_head: head ?? 0});
    document.getElementById('search-near').href = `/search?${new URLSearchParams({run, prompt, position: locked, layer: layer ?? 0, site})}`;
    const isResidual = ['hidden_in', 'hidden_out', 'attn_out', 'mlp_down_out'].includes(site);
    const promotes = figures.find((one) => one.dataset.chart === 'token_promotes');
    if (promotes) {
      promotes.hidden = !isResidual;
      document.getElementById('not-residual').hidden = isResidual;
    }
    near?.ask({layer, site});
    for (const one of figures) if (one.dataset.state && !one.hidden && one !== nearFigure) drawers.get(one)();
  }
  tokenActs.lock = (position) => lock(position, true);
  tokenActs.arcs = (rows) => { if (locked !== null) arcs.draw(locked, rows); };
  tokenActs.colourBy = (dim) => {
    for (const [name, value] of [['colour', 'neuron'], ['neuron', dim]]) {
      control(name).value = value;
      control(name).dispatchEvent(new Event('input', {bubbles: true}));
    }
  };

  // --- start: the words first, colours as they come ---
  tokens = select(await table(words), {});
  list = Object.assign(tokenList(place, tokens, () => arcs?.again()), {total: tokens.length});
  arcs = tokenArcs(place, list);
  if (said.has('position')) lock(Number(said.get('position')), true);
  await labelsAgain();
  colourAgain();
  const lensAgain = oneAtATime(async () => {
    if (!figures.some((one) => one.dataset.chart === 'token_lens')) return;
    const rows = select(await table(address('token_lens_layer', {layer: choices.layer})), {});
    lens = new Map(rows.map((row) => [row.position, row]));
  });
  lensAgain();

  // --- what the reader does ---
  place.addEventListener('pointerover', ({target}) => { const position = list.at(target); if (position !== null) tell(position); });
  place.addEventListener('pointerleave', () => { if (locked !== null) tell(locked); });
  place.addEventListener('click', ({target}) => { const position = list.at(target); if (position !== null) lock(position === locked ? null : position); });
  document.getElementById('let-go').addEventListener('click', () => lock(null));
  document.addEventListener('input', async ({target}) => {
    if (!target.dataset?.set) return;
    if (['source', 'column'].includes(target.dataset.set)) await labelsAgain();
    if (target.dataset.set !== 'head') colourAgain();
    if (['layer', 'site', 'head'].includes(target.dataset.set)) aboutIt();
    if (target.dataset.set === 'layer') lensAgain();
  });
  document.getElementById('hold').addEventListener('change', ({target}) => {
    held = target.checked ? scale : null;
    for (const end of ['low', 'high']) remember(end, held ? held[end] : null);
    colourAgain();
  });
  document.getElementById('prompt')?.addEventListener('change', ({target}) => { location.search = new URLSearchParams({prompt: target.value}); });
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    if (event.key === 'Escape' && !keyList.open) lock(null);
    else if ((event.key === 'ArrowLeft' || event.key === 'ArrowRight') && !event.target.matches('input')) {
      const first = tokens[0].position;
      const at = locked === null ? first : locked + (event.key === 'ArrowRight' ? 1 : -1);
      lock(Math.max(first, Math.min(tokens.at(-1).position, at)), true);
    } else if ((event.key === '[' || event.key === ']') && panel.querySelector('[data-set="head"]')) {
      const box = panel.querySelector('[data-set="head"]');
      box.selectedIndex = Math.max(0, Math.min(box.options.length - 1, box.selectedIndex + (event.key === ']' ? 1 : -1)));
      box.dispatchEvent(new Event('input', {bubbles: true}));
    } else return;
    event.preventDefault();
  });
  findIn(document.getElementById('find'), document.getElementById('hits'), tokens, list, (position) => lock(position, true));
}

/** A field that marks the tokens of a text that is found, and goes from one to the next. */
function findIn(field, output, tokens, list, go) {
  let starts = [];
  let at = -1;
  const ends = [];
  const whole = tokens.map(({token}) => token ?? '').reduce((text, token) => { ends.push(text.length + token.length); return text + token; }, '').toLowerCase();
  const find = () => {
    const sought = field.value.toLowerCase();
    const marks = new Set();
    starts = [];
    at = -1;
    let index = 0;
    for (let from = sought ? whole.indexOf(sought) : -1; from >= 0; from = whole.indexOf(sought, from + sought.length)) {
      while (ends[index] <= from) index += 1;
      starts.push(tokens[index].position);
      for (let one = index; one < tokens.length && (one === index || ends[one - 1] < from + sought.length); one += 1) marks.add(tokens[one].position);
    }
    output.textContent = sought ? `${starts.length} found` : '';
    list.mark(marks);
    remember('find', field.value);
  };
  field.addEventListener('input', find);
  field.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !starts.length) return;
    at = (at + (event.shiftKey ? starts.length - 1 : 1)) % starts.length;
    go(starts[at]);
    event.preventDefault();
  });
  field.value = new URLSearchParams(location.search).get('find') ?? '';
  if (field.value) {
    find();
    if (starts.length) list.show(starts[0]);
  }
}

const tokensFigure = document.querySelector('figure[data-chart="tokens"]');
if (tokensFigure) {
  custom.tokens = {uses: [], draw() {}};  // until the words are there
  tokensPage(tokensFigure).catch((error) => {
    const text = error instanceof Told ? error.message : `The tokens could not be shown: ${error}`;
    document.getElementById('conversation').replaceWith(element('p', {className: 'note warn', textContent: text}));
  });
}
