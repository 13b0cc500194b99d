// The list of runs: asked for anew while typing, walked with the arrows, compared when chosen.

const find = document.getElementById('find-runs');
if (find) {
  const place = document.getElementById('found');
  const kept = document.getElementById('chosen');  // chosen, but not among the runs that are shown
  const boxes = (below) => [...below.querySelectorAll('[name="ref"]')];
  const chosen = () => boxes(document).filter((box) => box.checked).map((box) => box.value);
  const tell = () => {
    const count = chosen().length;
    const button = document.getElementById('compare-chosen');
    button.disabled = count < 2;
    button.textContent = count > 1 ? `Compare the ${count} chosen` : 'Compare the chosen';
  };
  const keep = (run) => element('label', {className: 'kept'},
    Object.assign(element('input', {type: 'checkbox', name: 'ref', value: run, checked: true}), {autocomplete: 'off'}), ` ${run}`);
  /** Put another list in place of the one that is there; what is chosen stays chosen. */
  const show = (page) => {
    const before = chosen();
    for (const id of ['found', 'match-count']) document.getElementById(id).replaceChildren(...page.getElementById(id).childNodes);
    const there = new Map(boxes(place).map((box) => [box.value, box]));
    for (const run of before) if (there.has(run)) there.get(run).checked = true;
    kept.replaceChildren(...before.filter((run) => !there.has(run)).map(keep));
    tell();
  };
  let turn = 0;
  const go = async (address) => {
    const mine = turn += 1;
    const answer = await fetch(address, {headers: {Accept: 'text/html'}});
    const text = await answer.text();
    if (mine !== turn) return;
    if (!answer.ok) { location.href = address; return; }
    history.replaceState(null, '', address);
    show(new DOMParser().parseFromString(text, 'text/html'));
    const said = new URL(address, location.href).searchParams;
    for (const name of ['sort', 'order']) if (said.has(name)) find.elements[name].value = said.get(name);
  };
  const asked = () => `/?${new URLSearchParams([...new FormData(find)].filter(([, value]) => value))}`;
  let waiting;
  find.addEventListener('input', (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => go(asked()), event.target.name === 'q' ? 150 : 0);
  });
  find.addEventListener('submit', (event) => { event.preventDefault(); clearTimeout(waiting); go(asked()); });
  place.addEventListener('click', (event) => {
    const link = event.target.closest('thead a, #more');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.getAttribute('href'));
  });
  document.addEventListener('change', tell);
  tell();
  addEventListener('keydown', (event) => {
    const field = find.elements.q;
    if (!['ArrowDown', 'ArrowUp', ' '].includes(event.key) || (typing(event.target) && event.target !== field)) return;
    const row = event.target.closest('#runs tbody tr');
    if (event.key === ' ') {
      if (!row || event.target.type === 'checkbox') return;
      row.querySelector('[name="ref"]').click();
    } else {
      const rows = [...place.querySelectorAll('tbody tr')];
      rows[rows.indexOf(row) + (event.key === 'ArrowDown' ? 1 : -1)]?.querySelector('a').focus();
    }
    event.preventDefault();
  });
}
