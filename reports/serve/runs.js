// The list of runs: filtered while typing, walked with the arrows, compared when chosen.

for (const form of document.querySelectorAll('[data-filter]')) {
  const rows = [...document.querySelectorAll(`${form.dataset.filter} tbody tr`)];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const field = form.querySelector('[name="q"]');
  const count = form.querySelector('output');
  const compare = form.querySelector('[data-compare]');
  const chosen = () => rows.map((row) => row.querySelector('input:checked')?.value).filter(Boolean);
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} runs`;
  };
  field.value = new URLSearchParams(location.search).get('q') ?? '';
  if (field.value) filter();
  field.addEventListener('input', () => { filter(); remember('q', field.value); });
  addEventListener('change', () => { compare.disabled = chosen().length < 2; });
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const some = chosen();
    if (some.length > 1) location.href = `/compare?${new URLSearchParams(some.map((run) => ['ref', run]))}`;
  });
  addEventListener('keydown', (event) => {
    if (!['ArrowDown', 'ArrowUp'].includes(event.key) || (typing(event.target) && event.target !== field)) return;
    const there = rows.filter((row) => !row.hidden);
    const at = there.indexOf(document.activeElement.closest?.('tr'));
    there[at + (event.key === 'ArrowDown' ? 1 : -1)]?.querySelector('a').focus();
    event.preventDefault();
  });
}
