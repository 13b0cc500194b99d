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

/**
 * Makes the page work.
 *
 * `page` is what its parts share: `run`, `prompt`, `address(name, values)` of data about them, `tokens`, `at(position)`,
 * the `list`, the `arcs`, and the position that is `locked` or null.
 */
async function tokensPage(figure) {
  const place = document.getElementById('conversation');
  const controls = document.getElementById('token-controls');
  const {run, prompt} = figure.dataset;
  const page = {run, prompt, locked: null, address: (name, values) => `/data/${name}?${new URLSearchParams({run, prompt, ...values})}`};
  const first = colourAddress(page.address, null);
  if (first) table(first).catch(() => {});  // on its way beside the words; whoever draws it tells what is wrong
  page.tokens = select(await table(figure.dataset.table), {});
  const places = new Map(page.tokens.map((token) => [token.position, token]));
  page.at = (position) => places.get(position);
  page.list = tokenList(place, page.tokens, () => page.arcs?.again());
  page.arcs = tokenArcs(place, page.list);

  const colours = tokenColours(figure, controls, page);
  const panel = tokenPanel(page, colours);
  /** Look at a token until told else, or at none. */
  function lock(position, isShown = false) {
    if (position !== null && !page.at(position)) return;
    page.locked = position;
    page.list.lock(position);
    remember('position', position);
    if (isShown && position !== null) page.list.show(position);
    panel.show();
    if (choices.colour === 'cosine') colours.again();
  }
  Object.assign(tokenActs, {
    lock: (position) => lock(position, true),
    arcs(rows) { if (page.locked !== null) page.arcs.draw(page.locked, rows); },
    colourBy(dimension) {
      for (const [name, value] of [['colour', 'neuron'], ['neuron', dimension]]) chooseControl(controls, name, value);
    },
  });
  const said = new URLSearchParams(location.search);
  if (said.has('position')) lock(Number(said.get('position')), true);
  colours.again();
  panel.layer();

  place.addEventListener('pointerover', ({target}) => { if (page.list.at(target) !== null) panel.tell(page.list.at(target)); });
  place.addEventListener('pointerleave', () => { if (page.locked !== null) panel.tell(page.locked); });
  place.addEventListener('click', ({target}) => {
    const position = page.list.at(target);
    if (position !== null) lock(position === page.locked ? null : position);
  });
  document.getElementById('let-go').addEventListener('click', () => lock(null));
  document.getElementById('hold').addEventListener('change', ({target}) => colours.hold(target.checked));
  document.getElementById('prompt')?.addEventListener('change', ({target}) => { location.search = new URLSearchParams({prompt: target.value}); });
  document.addEventListener('input', ({target}) => {
    const {set} = target.dataset;
    if (!set) return;
    if (set !== 'head') colours.again();
    if (['layer', 'site', 'head'].includes(set)) panel.show();
    if (set === 'layer') panel.layer();
  });
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    if (tokenKey(event, page, lock)) event.preventDefault();
  });
  findTokens(document.getElementById('find'), document.getElementById('hits'), page, (position) => lock(position, true));
}

/** Give a control another value, as a reader does. */
function chooseControl(controls, name, value) {
  const control = controls.querySelector(`[data-set="${name}"]`);
  control.value = value;
  control.dispatchEvent(new Event('input', {bubbles: true}));
}

/** What a key does on the page of tokens; whether it does something. */
function tokenKey({key, target}, page, lock) {
  if (key === 'Escape' && !keyList.open) lock(null);
  else if ((key === 'ArrowLeft' || key === 'ArrowRight') && !target.matches('input')) {
    const [first, last] = [page.tokens[0].position, page.tokens.at(-1).position];
    const wanted = page.locked === null ? first : page.locked + (key === 'ArrowRight' ? 1 : -1);
    lock(Math.max(first, Math.min(last, wanted)), true);
  } else if (key === '[' || key === ']') {
    const heads = document.querySelector('#locked [data-set="head"]');
    if (!heads) return false;
    const wanted = heads.selectedIndex + (key === ']' ? 1 : -1);
    chooseControl(heads.parentElement, 'head', Math.max(0, Math.min(heads.options.length - 1, wanted)));
  } else return false;
  return true;
}

/** A field that marks the tokens of a text that is found, and goes from one to the next with Enter. */
function findTokens(field, output, {tokens, list}, go) {
  let starts = [];
  let at = -1;
  const ends = [];
  const whole = tokens.reduce((text, {token}) => {
    ends.push(text.length + (token ?? '').length);
    return text + (token ?? '');
  }, '').toLowerCase();
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
  if (!field.value) return;
  find();
  if (starts.length) list.show(starts[0]);
}

const tokensFigure = document.querySelector('figure[data-chart="tokens"]');
if (tokensFigure) {
  custom.tokens = {uses: [], draw() {}};  // until the words are there
  tokensPage(tokensFigure).catch((error) => {
    const text = error instanceof Told ? error.message : `The tokens could not be shown: ${error}`;
    document.getElementById('conversation').replaceWith(element('p', {className: 'note warn', textContent: text}));
  });
}
