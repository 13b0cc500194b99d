// Looks through the whole lake: said beforehand how much they read, done at once where that is little, and stopped at will.

/** Vectors that are read without being asked for. */
const LITTLE = 20_000;

/**
 * A figure whose query reads one layer and site of all runs, in `place` with a button to look, one to stop, and words.
 *
 * Gives `ask({layer, site})`: something else is wanted, which is looked for at once where it is little.
 */
function lakeLook(place, figure, drawIt) {
  const [reads, look, stop] = ['#near-reads', '#near-look', '#near-stop'].map((one) => place.querySelector(one));
  let running = null;
  async function start() {
    running?.abort();
    const mine = running = new AbortController();
    figure.hidden = false;
    look.hidden = true;
    stop.hidden = false;
    const address = source(figure);
    if (!tables.has(address)) {
      tables.set(address, fetched(address, {signal: mine.signal}).catch((error) => {
        throw error.name === 'AbortError' ? new Told('The look was stopped.') : error;
      }));
    }
    await drawIt();
    if (running !== mine) return;
    running = null;
    stop.hidden = true;
    look.hidden = figure.dataset.state !== 'failed';
  }
  look.addEventListener('click', start);
  stop.addEventListener('click', () => running?.abort());
  return {
    async ask({layer, site}) {
      running?.abort();
      running = null;
      figure.hidden = true;
      stop.hidden = look.hidden = true;
      const asked = source(figure);
      const [{runs, vectors}] = select(await table(`/data/layer_reads?${new URLSearchParams({layer, site})}`), {});
      if (asked !== source(figure)) return;
      reads.textContent = `Reads ${site} of layer ${layer} in ${runs === 1 ? '1 run' : `${runs} runs`}: ${vectors.toLocaleString('en')} tokens.`;
      look.hidden = false;
      if (vectors <= LITTLE) start();
    },
  };
}
