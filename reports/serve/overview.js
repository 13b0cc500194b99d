// The page of one run: what the report says of it comes after the page itself; deleting asks first.

/** Put a part of a report in a place of the page: its words, its tables, and what the script reads of them. */
function takeIn(place, {html, packed, registry}) {
  for (const name of ['queries', 'tables', 'names']) Object.assign(report[name], registry[name]);
  report.scales = registry.scales;
  for (const [name, text] of Object.entries(packed)) {
    document.body.append(element('script', {type: 'text/plain', id: `data-${name}`, textContent: text}));
  }
  choices.site = registry.sites[0] ?? choices.site;
  choices.compared = registry.compared ?? choices.compared;
  place.innerHTML = html;  // of our own templates, which escape what is of a user or a model
  adopt(place);
  recall();
  openTarget();
}

const runCard = document.getElementById('card');
if (runCard) {
  ask(runCard.dataset.address).then((card) => takeIn(runCard, card), (error) => {
    if (!(error instanceof Told)) throw error;
    runCard.replaceChildren(element('p', {className: 'note warn', textContent: error.message}));
  }).finally(() => runCard.removeAttribute('aria-busy'));
  for (const button of document.querySelectorAll('[data-dialog]')) {
    button.addEventListener('click', () => document.getElementById(button.dataset.dialog).showModal());
  }
  for (const button of document.querySelectorAll('[data-remove]')) {
    button.addEventListener('click', async () => {
      const {remove} = button.dataset;
      const problem = button.closest('dialog').querySelector('[role="alert"]');
      button.disabled = true;
      try {
        await send(runCard.dataset.address.replace(/card$/, 'remove'), {what: remove});
        if (remove === 'run') location.href = '/';
        else location.reload();
      } catch (error) {
        button.disabled = false;
        problem.hidden = false;
        problem.textContent = error.message;
      }
    });
  }
}
