// Printing the report: everything is opened and drawn first, in light colours.

/** Open and draw everything, in light colours; what was closed is closed again afterwards. */
async function drawAll() {
  printing = true;
  document.documentElement.classList.add('printing');
  document.querySelectorAll('details').forEach(unfold);
  for (const fold of document.querySelectorAll('details:not([open])')) {
    fold.open = true;
    fold.dataset.opened = '';
  }
  await Promise.all([...document.querySelectorAll('figure[data-chart]')].map(draw));
}

addEventListener('beforeprint', () => { drawAll(); });
addEventListener('afterprint', () => {
  printing = false;
  document.documentElement.classList.remove('printing');
  for (const fold of document.querySelectorAll('details[data-opened]')) {
    fold.open = false;
    delete fold.dataset.opened;
  }
  if (darkScreen.matches) redraw(document);
});

// The browser's own print command cannot wait for tables to be inflated: where they are small, that is done
// beforehand, one at a time while nothing else is to do.
const packed = document.querySelectorAll('script[id^="data-"]');
const whenIdle = window.requestIdleCallback ?? ((next) => setTimeout(next, 50));
function inflateNext(names) {
  if (names.length) whenIdle(() => table(names[0]).then(() => inflateNext(names.slice(1))));
  else document.documentElement.dataset.inflated = '';
}
if ([...packed].reduce((size, block) => size + block.textContent.length, 0) < 2e6) inflateNext(Object.keys(report.tables));

async function print() {
  await drawAll();
  window.print();
}
document.getElementById('print').addEventListener('click', print);
addEventListener('keydown', (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === 'p') {
    event.preventDefault();
    print();
  }
});
