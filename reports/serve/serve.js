// What every page of `alab serve` has: keys, choices in the address, lists that are filtered.

// --- the address says what is chosen ------------------------------------------------------------------------

/** Put a value into the page's address, or take it out, without a new page. */
function remember(name, value) {
  const here = new URL(location.href);
  if (value === null || value === '') here.searchParams.delete(name);
  else here.searchParams.set(name, value);
  history.replaceState(null, '', here);
}

/** Give a control what the address says; what it cannot be it is not, and then the address says what it is. */
function follow(control, value) {
  const {value: own, options} = control;
  const others = control.type === 'radio' ? [...document.getElementsByName(control.name)] : [];
  if (others.some((one) => one.value === value)) control.checked = own === value;
  else if (!others.length && !('only' in control.dataset)) control.value = value;
  if (control.value === value || options?.length === 0 || (others.length && !control.checked)) return;
  if (!control.value) control.value = own;
  remember(control.dataset.set, control.value);
}

/** Give controls the values that the address says. */
function recall() {
  const said = new URLSearchParams(location.search);
  for (const control of document.querySelectorAll('[data-set]')) {
    const name = control.dataset.set;
    if (said.has(name)) follow(control, said.get(name));
    if (control.type === 'radio' && !control.checked) continue;
    const numeric = control.type === 'range' || 'number' in control.dataset;
    const card = control.closest('[data-card]');
    (card ? card.choices ??= {} : choices)[name] = numeric ? Number(control.value) : control.value;
  }
}
/** Let the words beside a slider say where it stands. */
function tellValue(control) {
  const output = document.querySelector(`output[data-of="${control.dataset.set}"]`);
  if (output) output.textContent = control.value;
}
recall();
document.querySelectorAll('[data-set]').forEach(tellValue);
document.addEventListener('input', ({target}) => { if (target.dataset.set) {
  remember(target.dataset.set, target.value);
  tellValue(target);
} });

// --- keys ---------------------------------------------------------------------------------------------------

const typing = (target) => target.matches?.('input:not([type="checkbox"], [type="range"]), textarea, select, [contenteditable]');
const keyList = document.getElementById('key-list');
document.getElementById('keys').addEventListener('click', () => keyList.showModal());
addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (event.key === '?') keyList.showModal();
  else if (event.key === '/') {
    const field = document.querySelector('[data-search]');
    if (field) field.focus();
    else location.href = '/search';
  } else if (event.key.startsWith('Arrow') && !event.target.matches('input, [role="grid"] *')) {
    const way = event.key === 'ArrowLeft' || event.key === 'ArrowRight' ? 'leftRight' : 'upDown';
    const slider = [...document.querySelectorAll('[data-set][type="range"]')].find((one) => way in one.dataset);
    if (!slider) return;
    slider.value = Number(slider.value) + (['ArrowRight', 'ArrowUp'].includes(event.key) ? 1 : -1);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
  } else return;
  event.preventDefault();
});

// --- what changes something ---------------------------------------------------------------------------------

/** What a request is that carries JSON. */
const posted = (json) => ({method: 'POST', headers: {'Content-Type': 'application/json'}, body: json});

/** Send an object to the server. */
const send = (address, body) => ask(address, posted(JSON.stringify(body)));
