// A conversation as tokens: only what is near the window is there, so that any length scrolls.

/** Tokens that come and go together. */
const TOKENS_A_BLOCK = 128;

/** Consecutive tokens of one message, or of none, as `{role, message, generated, tokens}`. */
function turnsOf(tokens) {
  const turns = [];
  for (const token of tokens) {
    const last = turns.at(-1);
    if (last && last.message === token.message_index && last.role === token.role && last.generated === token.is_generated) last.tokens.push(token);
    else turns.push({message: token.message_index, role: token.role, generated: token.is_generated, tokens: [token]});
  }
  return turns;
}

/** A token as it reads in its text: breaks are shown where they are, and something where nothing would be seen. */
const inText = (token) => (token ?? '').replace(/\r/g, '␍').replace(/\t/g, '⇥\t').replace(/\n/g, '⏎\n') || '∅';

/**
 * The tokens in `place`, an element that scrolls.
 *
 * Gives `paint(tones)` with a map from position to `{share, low, mark}`, `lock(position)`, `mark(positions)` for what was
 * found, `show(position)`, `boxOf(position)` relative to what scrolls, and `at(element)`, the position that an element is of.
 */
function tokenList(place, tokens, changed) {
  const model = element('span', {className: 'token'});
  model.setAttribute('role', 'option');
  const blocks = [];
  const blockOf = new Map();
  let tones = new Map();
  let found = new Set();
  let locked = null;

  const sections = turnsOf(tokens).map((turn) => {
    const kind = ['user', 'assistant'].includes(turn.role) ? turn.role : 'system';
    const role = turn.role ?? 'added by the tokenizer';
    const name = turn.message === null ? `${role}, template` : `${role}, ${turn.generated ? 'reply' : `message ${turn.message}`}`;
    const words = element('div', {className: 'words'});
    for (let at = 0; at < turn.tokens.length; at += TOKENS_A_BLOCK) {
      const part = turn.tokens.slice(at, at + TOKENS_A_BLOCK);
      const block = {tokens: part, place: element('div', {className: 'block'}), filled: false,
        letters: part.reduce((sum, {token}) => sum + (token?.length ?? 0) + 0.6, 0),
        lines: part.reduce((sum, {token}) => sum + (token?.includes('\n') ? 1 : 0), 0)};
      block.place.block = block;
      blocks.push(block);
      for (const token of part) blockOf.set(token.position, block);
      words.append(block.place);
    }
    const who = element('div', {className: 'who'}, element('span', {className: `badge ${kind}`, textContent: turn.role ?? 'tokenizer'}),
      element('span', {className: 'quiet', textContent: turn.message === null ? 'template' : turn.generated ? 'generated' : turn.message}),
      element('span', {className: 'quiet place', textContent: `from ${turn.tokens[0].position}`}));
    const section = element('div', {className: `turn ${kind}`}, who, words);
    section.setAttribute('role', 'group');
    section.setAttribute('aria-label', name);
    return section;
  });

  function dress(item, position) {
    const tone = tones.get(position);
    item.classList.toggle('low', tone?.low ?? false);
    item.classList.toggle('none', tone === undefined);
    item.classList.toggle('extreme', tone?.mark ?? false);
    item.classList.toggle('hit', found.has(position));
    item.style.setProperty('--share', `${tone?.share ?? 0}%`);
    item.setAttribute('aria-selected', position === locked);
  }
  function fill(block) {
    if (block.filled) return;
    block.filled = true;
    block.place.style.height = '';
    block.place.replaceChildren(...block.tokens.map(({position, token, is_template}) => {
      const item = model.cloneNode();
      item.id = `token-${position}`;
      item.position = position;
      item.textContent = inText(token);
      item.setAttribute('aria-posinset', position + 1);
      item.setAttribute('aria-setsize', tokens.length);
      if (is_template) item.classList.add('template');
      dress(item, position);
      return item;
    }));
  }
  function empty(block) {
    if (!block.filled) return;
    block.place.style.height = `${block.place.offsetHeight}px`;
    block.place.replaceChildren();
    block.filled = false;
  }
  /** About as high as a block will be. */
  function reserve() {
    const wide = Math.max(20, (place.clientWidth - 150) / 8);
    for (const block of blocks) if (!block.filled) block.place.style.height = `${Math.ceil(block.letters / wide + block.lines) * 25}px`;
  }
  const near = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) (isIntersecting ? fill : empty)(target.block);
    changed();
  }, {root: place, rootMargin: '800px 0px'});

  place.replaceChildren(...sections);
  reserve();
  blocks.slice(0, 12).forEach(fill);  // what the first look sees is there at once
  for (const block of blocks) near.observe(block.place);
  let width = place.clientWidth;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) { width = place.clientWidth; reserve(); changed(); }
  }).observe(place);

  const itemOf = (position) => (blockOf.get(position)?.filled ? document.getElementById(`token-${position}`) : null);
  const dressAll = () => {
    for (const block of blocks) if (block.filled) for (const item of block.place.children) dress(item, item.position);
  };
  return {
    paint(values) { tones = values; dressAll(); },
    mark(positions) { found = positions; dressAll(); },
    lock(position) {
      const before = locked;
      locked = position;
      for (const one of [before, position]) if (itemOf(one)) dress(itemOf(one), one);
      if (position === null) place.removeAttribute('aria-activedescendant');
      else place.setAttribute('aria-activedescendant', `token-${position}`);
    },
    show(position) {
      const block = blockOf.get(position);
      if (!block) return;
      fill(block);
      const {top, bottom} = itemOf(position).getBoundingClientRect();
      const frame = place.getBoundingClientRect();
      if (top < frame.top || bottom > frame.bottom) place.scrollTop += top - frame.top - frame.height / 2;
    },
    /** Where a token is; of one that is not there, where its block is. */
    boxOf(position) {
      const box = (itemOf(position) ?? blockOf.get(position)?.place)?.getClientRects()[0];
      const frame = place.getBoundingClientRect();
      return box && {x: box.left - frame.left + box.width / 2, y: box.top - frame.top + place.scrollTop};
    },
    at: (target) => target.closest?.('[role="option"]')?.position ?? null,
  };
}
