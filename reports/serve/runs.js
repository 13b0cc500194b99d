// The list of runs: filtered while typing, walked with the arrows.

for (const form of document.querySelectorAll('[data-filter]')) {
  const rows = [...document.querySelectorAll(`${form.dataset.filter} tbody tr`)];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const field = form.querySelector('[name="q"]');
  const count = form.querySelector('output');
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
  form.addEventListener('submit', (event) => event.preventDefault());
  addEventListener('keydown', (event) => {
    if (!['ArrowDown', 'ArrowUp'].includes(event.key) || (typing(event.target) && event.target !== field)) return;
    const there = rows.filter((row) => !row.hidden);
    const at = there.indexOf(document.activeElement.closest?.('tr'));
    there[at + (event.key === 'ArrowDown' ? 1 : -1)]?.querySelector('a').focus();
    event.preventDefault();
  });
}
