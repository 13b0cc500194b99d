// A scenario as form and YAML. The YAML is the scenario: an edit of the form is sent with it, and the server writes the
// value into the text, where every other character stays.

const captureRoot = document.getElementById('capture');
if (captureRoot) {
  const yaml = document.getElementById('yaml');
  const byId = (id) => document.getElementById(id);
  const form = captureRoot.querySelector('form.scenario');
  const group = form.querySelector('fieldset');
  const launchForm = byId('launch');
  const roles = ['system', 'user', 'assistant', 'tool', 'developer'];
  let data = {};
  let edits = [];        // of the form, not yet sent
  let version = 0;       // of the text, as typed
  let timer = null;
  let asking = null;     // the request under way
  let sound = false;

  const at = (path, from = data) => path.reduce((value, part) => (value === null || value === undefined ? undefined : value[part]), from);
  const prompts = () => (Array.isArray(data.prompt) ? data.prompt : data.prompt ? [data.prompt] : []);
  const promptPath = (index) => (Array.isArray(data.prompt) ? ['prompt', index] : ['prompt']);
  const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

  // --- the server checks -------------------------------------------------------------------------------------

  /** Check after a pause in typing. */
  function soon(wait = 280) {
    clearTimeout(timer);
    timer = setTimeout(check, wait);
  }

  async function check(ask = false) {
    if (asking) { soon(120); return; }
    const sent = {text: yaml.value, version, edits};
    edits = [];
    asking = sent;
    try {
      const answer = await send('/api/capture/check', {yaml: sent.text, edits: sent.edits, ask});
      asking = null;
      if (version !== sent.version) { soon(0); return; }  // what was typed meanwhile counts
      if (answer.yaml !== yaml.value) setText(answer.yaml);
      show(answer);
      if (!ask && answer.estimate && answer.estimate.bytes === null && !edits.length) check(true);
    } catch (error) {
      asking = null;
      tell([{line: null, message: error.message, hint: ''}]);
    }
  }

  /** Replace the text, with the caret where it was. */
  function setText(text) {
    const {selectionStart, selectionEnd, scrollTop} = yaml;
    yaml.value = text;
    yaml.setSelectionRange(selectionStart, selectionEnd);
    yaml.scrollTop = scrollTop;
    number();
  }
  function number() {
    const count = yaml.value.split('\n').length;
    byId('numbers').textContent = Array.from({length: count}, (_, index) => index + 1).join('\n');
    byId('numbers').scrollTop = yaml.scrollTop;
  }

  function show(answer) {
    const readable = isObject(answer.data);
    byId('broken').hidden = readable;
    group.disabled = !readable;
    if (readable) {
      data = answer.data;
      fillForm();
    }
    const refused = answer.refused ? [{line: null, message: answer.refused, hint: ''}] : [];
    tell([...refused, ...answer.mistakes]);
    sound = readable && !answer.mistakes.length && !answer.preview?.error;
    launchForm.querySelector('.main').disabled = !sound;
    showPreview(answer.preview);
    showEstimate(answer.estimate, answer.preview);
  }

  function tell(mistakes) {
    byId('mistakes').replaceChildren(...mistakes.map(({line, message, hint}) => {
      const words = [line === null ? '' : `line ${line}: `, message, hint ? `. ${hint}` : ''].join('');
      if (line === null) return element('p', {textContent: words});
      const button = element('button', {type: 'button', textContent: words, title: 'Go to the line'});
      button.addEventListener('click', () => goTo(line));
      return element('p', {}, button);
    }));
  }
  function goTo(line) {
    const lines = yaml.value.split('\n');
    const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    yaml.focus();
    yaml.setSelectionRange(start, start + (lines[line - 1] ?? '').length);
    yaml.scrollTop = (line - 4) * parseFloat(getComputedStyle(yaml).lineHeight);
  }

  function showPreview(preview) {
    const place = byId('preview');
    if (!preview) { place.replaceChildren(); return; }
    if (preview.error) { place.replaceChildren(element('p', {className: 'note warn', textContent: preview.error})); return; }
    const rows = preview.shown.map(({id, texts, error}) => element('tr', {},
      element('th', {scope: 'row', className: 'left'}, element('bdi', {textContent: id})),
      element('td', {className: 'left'}, ...(error ? [element('span', {className: 'cut', textContent: error})]
        : texts.map((text, index) => element('div', {className: 'text', dir: 'auto', textContent: (preview.roles[index] ? `${preview.roles[index]}: ` : '') + text}))))));
    const head = element('tr', {}, element('th', {className: 'left', scope: 'col', textContent: 'row'}),
      element('th', {className: 'left', scope: 'col', textContent: 'what the model reads'}));
    place.replaceChildren(
      element('h3', {textContent: `The first of ${preview.rows.toLocaleString('en')} rows`}),
      element('div', {className: 'scroll', tabIndex: 0}, element('table', {}, element('thead', {}, head), element('tbody', {}, ...rows))),
      element('p', {className: 'how'}, 'Columns, which become labels: ', element('bdi', {textContent: preview.columns.join(', ')})));
  }

  const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`);
  function showEstimate(estimate) {
    if (!estimate) { byId('estimate').replaceChildren(); return; }
    const bytes = estimate.bytes === null ? `how many bytes is not known: ${estimate.why}` : `about ${size(estimate.bytes)} on disk`;
    const time = estimate.seconds === null ? 'how long is not known until this model has run here' : `about ${duration(estimate.seconds)} once the model is loaded, as earlier runs of it here took`;
    const tokens = `vectors of about ${estimate.tokens.toLocaleString('en')} tokens are kept (4 characters a token)`;
    byId('estimate').textContent = `${bytes}; ${time}; ${tokens}.`;
  }

  // --- the form ----------------------------------------------------------------------------------------------

  /** The path of a control: names with dots, or a list. */
  const pathOf = (control) => (control.dataset.path.startsWith('[') ? JSON.parse(control.dataset.path) : control.dataset.path.split('.'));

  function textOf(value, kind) {
    if (value === undefined || value === null) return '';
    if (kind === 'yaml' && typeof value === 'object') return JSON.stringify(value);
    if (Array.isArray(value)) return value.map((item) => (typeof item === 'object' ? JSON.stringify(item) : String(item))).join(', ');
    return typeof value === 'object' ? JSON.stringify(value) : String(value);
  }
  function valueOf(control) {
    const text = control.value;
    const number = (one) => (/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(one.trim()) ? Number(one) : one);
    switch (control.dataset.kind) {
      case 'switch': return text === 'true';
      case 'number': return number(text);
      case 'words': return text.split(',').map((one) => one.trim()).filter(Boolean);
      case 'numbers': return text.trim() === 'all' ? 'all' : text.split(',').map((one) => number(one.trim())).filter((one) => one !== '');
      case 'yaml': try { return JSON.parse(text); } catch { return text; }
      default: return text;
    }
  }

  /** What lists of the form look like: while it is the same, controls only get new values. */
  let shape = '';
  function fillForm() {
    const references = Array.isArray(data.reference_states) ? data.reference_states : [];
    const now = JSON.stringify([Array.isArray(data.prompt), prompts().map((one) => [isObject(one) ? Object.keys(one).filter((key) => ['messages', 'text', 'dataset'].includes(key)) : [],
      one?.messages?.length, one?.dataset?.messages?.length]), references.map((one) => one?.messages?.length)]);
    if (now !== shape) {
      shape = now;
      byId('prompts').replaceChildren(...prompts().map(promptCard));
      byId('references').replaceChildren(...references.map(referenceCard));
    }
    for (const control of form.querySelectorAll('[data-path]')) {
      if (control === document.activeElement && edits.length) continue;
      const text = textOf(at(pathOf(control)), control.dataset.kind);
      if (control.tagName === 'SELECT' && text && ![...control.options].some((one) => one.value === text)) control.append(element('option', {textContent: text}));
      if (control.value !== text && control.tagName === 'SELECT' || control !== document.activeElement) control.value = text;
    }
  }

  const named = (name, control) => element('label', {className: 'field'}, element('span', {textContent: name}), control);
  function field(name, path, kind = 'text', properties = {}) {
    const control = element(properties.rows ? 'textarea' : 'input', {autocomplete: 'off', spellcheck: false, ...properties});
    control.dataset.path = JSON.stringify(path);
    control.dataset.kind = kind;
    const label = named(name, control);
    if (properties.rows) label.classList.add('wide');
    return label;
  }
  function choose(name, path, options, kind = 'text', none = null) {
    const control = element('select', {}, ...(none === null ? [] : [element('option', {value: '', textContent: none})]),
      ...options.map((one) => element('option', {textContent: one})));
    control.dataset.path = JSON.stringify(path);
    control.dataset.kind = kind;
    return named(name, control);
  }
  function button(words, act, title = words) {
    const made = element('button', {type: 'button', textContent: words, title});
    made.setAttribute('aria-label', title);
    made.addEventListener('click', act);
    return made;
  }
  const change = (...some) => { edits.push(...some); soon(0); };

  /** The messages at a path, each with its role and content. */
  function messages(path, list) {
    const items = (Array.isArray(list) ? list : []).map((_, index) => element('div', {className: 'message'},
      choose(`role ${index + 1}`, [...path, index, 'role'], roles),
      field(`message ${index + 1}`, [...path, index, 'content'], 'text', {rows: 2}),
      button('×', () => change({path: [...path, index], remove: true}), `remove message ${index + 1}`)));
    const last = list?.at?.(-1)?.role;
    const role = last === 'user' ? 'assistant' : 'user';
    return element('div', {className: 'messages'}, ...items,
      button('Add a message', () => change({path, append: {role, content: ''}})));
  }

  function promptCard(prompt, index) {
    const path = promptPath(index);
    const kind = ['messages', 'text', 'dataset'].find((one) => isObject(prompt) && one in prompt) ?? 'messages';
    const begin = {messages: [{role: 'user', content: 'Hello!'}], text: 'Once upon a time', dataset: {source: 'vega:airports', text: '{{ name }}'}};
    const choice = element('select', {}, ...['messages', 'text', 'dataset'].map((one) => element('option', {value: one, textContent: {messages: 'conversation', text: 'text', dataset: 'dataset'}[one], selected: one === kind})));
    choice.addEventListener('change', () => change({path: [...path, choice.value], value: begin[choice.value]}, {path: [...path, kind], remove: true}));
    const parts = [element('div', {className: 'fields'}, named('reads', choice),
      ...(prompts().length > 1 ? [button('Remove', () => change({path: ['prompt', index], remove: true}), `remove prompt ${index + 1}`)] : []))];
    if (kind === 'messages') parts.push(messages([...path, 'messages'], prompt?.messages));
    if (kind === 'text') parts.push(field('text', [...path, 'text'], 'text', {rows: 3}));
    if (kind === 'dataset') parts.push(datasetFields([...path, 'dataset'], prompt.dataset));
    if (kind === 'messages' || prompt?.dataset?.messages) {
      parts.push(element('div', {className: 'fields'},
        ...(kind === 'messages' ? [choose('run at each message', [...path, 'run_at_each_message'], ['true', 'false'], 'switch', 'no (default)')] : []),
        choose('add generation prompt', [...path, 'add_generation_prompt'], ['true', 'false'], 'switch', 'yes (default)'),
        field('template options', [...path, 'template'], 'yaml', {placeholder: '{"enable_thinking": false}'})));
    }
    return element('section', {className: 'prompt'}, element('h3', {textContent: prompts().length > 1 ? `Prompt ${index}` : 'Prompt'}), ...parts);
  }
  function datasetFields(path, dataset) {
    const isText = !dataset?.messages;
    const choice = element('select', {}, element('option', {value: 'text', textContent: 'a text', selected: isText}), element('option', {value: 'messages', textContent: 'a conversation', selected: !isText}));
    choice.addEventListener('change', () => change(choice.value === 'text' ? {path: [...path, 'text'], value: dataset.messages?.[0]?.content || '{{ name }}'}
      : {path: [...path, 'messages'], value: [{role: 'user', content: dataset.text || '{{ name }}'}]}, {path: [...path, isText ? 'text' : 'messages'], remove: true}));
    return element('div', {},
      element('div', {className: 'fields'}, field('source', [...path, 'source'], 'text', {placeholder: 'vega:airports, or a file beside the scenario'}),
        field('id', [...path, 'id'], 'text', {placeholder: 'the row’s number'}), field('group', [...path, 'group'], 'text', {placeholder: 'none'}),
        choose('on error', [...path, 'on_error'], ['stop', 'skip'], 'text', 'stop (default)'), named('each row is', choice)),
      field('query', [...path, 'query'], 'text', {rows: 2, placeholder: 'from source'}),
      isText ? field('text', [...path, 'text'], 'text', {rows: 2}) : messages([...path, 'messages'], dataset.messages));
  }
  function referenceCard(reference, index) {
    const path = ['reference_states', index];
    return element('section', {className: 'prompt'},
      element('div', {className: 'fields'}, field(`label ${index + 1}`, [...path, 'label']),
        button('Add an example', () => change({path: ['reference_states'], append: {label: String(reference?.label ?? ''), messages: [{role: 'user', content: ''}]}}), `add an example of ${reference?.label ?? 'it'}`),
        button('Remove', () => change({path, remove: true}), `remove reference ${index + 1}`)),
      messages([...path, 'messages'], reference?.messages));
  }

  // --- what happens ------------------------------------------------------------------------------------------

  form.addEventListener('input', ({target}) => {
    if (!target.dataset.path) return;
    const path = pathOf(target);
    const kept = target.dataset.kind === 'text' && (path.at(-1) === 'content' || path.at(-1) === 'role');
    const one = target.value === '' && !kept ? {path, remove: true} : {path, value: valueOf(target)};
    edits = [...edits.filter((other) => JSON.stringify(other.path) !== JSON.stringify(path)), one];
    soon();
  });
  form.addEventListener('submit', (event) => event.preventDefault());
  form.querySelector('[data-add="prompt"]').addEventListener('click', () => change({path: ['prompt'], append: {messages: [{role: 'user', content: 'Hello!'}]}}));
  form.querySelector('[data-add="reference"]').addEventListener('click', () => change({path: ['reference_states'], append: {label: 'joy', messages: [{role: 'user', content: 'I am full of joy!'}]}}));
  yaml.addEventListener('input', () => { version += 1; edits = []; number(); soon(); });
  yaml.addEventListener('scroll', () => { byId('numbers').scrollTop = yaml.scrollTop; });
  for (const select of document.querySelectorAll('[data-go]')) {
    select.addEventListener('change', () => { if (select.value) location.href = address('/capture', {[select.name]: select.value}); });
  }
  function address(path, values) { return `${path}?${new URLSearchParams(values)}`; }

  async function save() {
    const {name, overwrite} = launchForm.elements;
    try {
      const {file} = await send('/api/capture/save', {name: name.value || String(data.name ?? ''), yaml: yaml.value, overwrite: overwrite.checked});
      name.value = file;
      byId('saved').textContent = `saved as ${file}`;
      history.replaceState(null, '', address('/capture', {file}));
    } catch (error) {
      byId('saved').textContent = error.message;
    }
  }
  byId('save').addEventListener('click', save);
  launchForm.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (launchForm.querySelector('.main').disabled) return;
    launchForm.querySelector('.main').disabled = true;
    try {
      location.href = (await send('/api/jobs', {yaml: yaml.value})).address;
    } catch (error) {
      byId('saved').textContent = error.message;
      launchForm.querySelector('.main').disabled = false;
    }
  });
  addEventListener('keydown', (event) => {
    if (!(event.ctrlKey || event.metaKey)) return;
    if (event.key === 's') { event.preventDefault(); save(); }
    if (event.key === 'Enter') launchForm.requestSubmit();
  });
  number();
  soon(0);  // when the whole script is there
}
