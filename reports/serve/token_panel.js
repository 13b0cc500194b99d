// What is known of one token: at once of the one that is pointed at, from the server of the one that is locked.

/** Sites whose vectors are of the residual stream, as the unembedding takes them. */
const RESIDUAL_SITES = ['hidden_in', 'hidden_out', 'attn_out', 'mlp_down_out'];

/** What the page knows of a token without asking, as [name, text]. */
function factsOf(token, value, said) {
  const written = [token.message_index === null ? '' : `, message ${token.message_index}`, token.is_template ? ', template' : '', token.is_generated ? ', generated' : ''];
  return [
    ['', `position ${token.position}, id ${token.token_id}`],
    ['', `${token.role ?? 'added by the tokenizer'}${written.join('')}`],
    ['', token.step === null ? 'no pass read it' : token.step === 0 ? 'read by the prefill' : `read by pass ${token.step}`],
    [COLOURINGS[choices.colour]?.name, value],
    ['likeliest after it', token.likeliest === null ? null : `${tokenText(token.likeliest)} ${percent(token.top1_prob)}`],
    [`layer ${choices.layer} would say`, said ? `${tokenText(said.token)} ${percent(said.probability)}` : null],
  ].filter(([, text]) => text !== null);
}

/**
 * The panel beside the tokens of a page (see `tokensPage`).
 *
 * Gives `tell(position)`, of what is pointed at, `show()`, of what is locked, and `layer()`, after the layer changed.
 */
function tokenPanel(page, colours) {
  const panel = document.getElementById('locked');
  const figures = [...panel.querySelectorAll('figure[data-chart]')];
  const drawers = new Map(figures.map((one) => [one, oneAtATime(() => draw(one))]));
  const figure = (name) => figures.find((one) => one.dataset.chart === name);
  const nearest = figure('token_nearest');
  const near = nearest && lakeLook(document.getElementById('near'), nearest, drawers.get(nearest));
  const promotes = figure('token_promotes');
  let lens = new Map();

  function tell(position) {
    const token = page.at(position);
    if (!token) return;
    const name = element('span', {className: 'token state', textContent: tokenText(token.token), dir: 'auto'});
    const badge = position === page.locked ? element('span', {className: 'badge', textContent: 'locked'}) : '';
    const lines = factsOf(token, colours.value(position), lens.get(position)).map(([title, text]) =>
      element('span', {}, title ? element('i', {textContent: `${title} `}) : '', element('bdi', {textContent: text})));
    document.getElementById('preview').replaceChildren(element('p', {}, name, badge), element('p', {className: 'small facts-of'}, ...lines));
  }
  function show() {
    const {layer = '', site, head = 0} = choices;
    panel.hidden = page.locked === null;
    page.arcs.clear();
    if (page.locked === null) return;
    tell(page.locked);
    Object.assign(choices, {of_position: page.locked, of_layer: layer, of_site: site, of_head: head});
    document.getElementById('search-near').href = `/search?${new URLSearchParams({run: page.run, prompt: page.prompt, position: page.locked, layer, site})}`;
    if (promotes) document.getElementById('not-residual').hidden = !(promotes.hidden = !RESIDUAL_SITES.includes(site));
    near?.ask({layer, site});
    // Those that were never seen are drawn when they are.
    for (const one of figures) if (one.dataset.state && !one.hidden && one !== nearest) drawers.get(one)();
  }
  const layer = oneAtATime(async () => {
    if (!figure('token_lens')) return;
    const rows = select(await table(page.address('token_lens_layer', {layer: choices.layer})), {});
    lens = new Map(rows.map((row) => [row.position, row]));
  });
  return {tell, show, layer};
}
