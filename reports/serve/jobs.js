// Captures that run: the page of one, which follows what it says, and the list on top of other pages.

/** Seconds as a person says them. */
function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
/** How far a stage is, in words. */
function progressWords({what, done, total, per_second: rate, seconds_left: left}) {
  const speed = rate ? `, ${rate >= 10 ? Math.round(rate) : rate.toFixed(1)} a second` : '';
  return `${what}: ${done} of ${total}${speed}${left ? `, about ${duration(left)} left` : ''}`;
}
const JOB_WORDS = {queued: 'waits', running: 'runs', cancelling: 'is being cancelled', done: 'done', failed: 'failed', cancelled: 'cancelled'};

// --- one job ------------------------------------------------------------------------------------------------

const jobRoot = document.getElementById('job');
if (jobRoot) {
  const LINES = 500;
  const part = (name) => jobRoot.querySelector(`[data-part="${name}"]`);
  const here = `/api/jobs/${jobRoot.dataset.job}`;
  const replies = new Map();

  const line = (words, kind = '') => {
    const log = part('log');
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(element('div', {textContent: words, className: kind}));
    while (log.childElementCount > LINES) log.firstElementChild.remove();
    if (follow) log.scrollTop = log.scrollHeight;
  };
  /** The reply of a prompt, which grows token by token; only the newest few stay on the page. */
  const reply = ({prompt, text}) => {
    if (!replies.has(prompt)) {
      const words = element('div', {className: 'bubble text', dir: 'auto'});
      const box = element('li', {className: 'assistant generated'}, element('div', {className: 'who', textContent: `prompt ${prompt}`}), words);
      part('replies').append(box);
      replies.set(prompt, words);
      if (replies.size > 5) {
        const first = replies.keys().next().value;
        replies.get(first).parentElement.remove();
        replies.delete(first);
      }
      part('reply').hidden = false;
    }
    replies.get(prompt).append(text);
  };
  const stage = (event) => {
    const bar = part('bar');
    bar.max = event.total;
    bar.value = event.done;
    bar.hidden = false;
    part('stage').textContent = progressWords(event);
  };
  const take = (event) => {
    if (event.event === 'token') reply(event);
    else if (event.event === 'stage') stage(event);
    else if (event.event === 'message' || event.event === 'log') line(String(event.text), event.event === 'log' ? 'quiet' : '');
    else if (event.event === 'begun') { replies.clear(); part('replies').replaceChildren(); line(`began ${event.run}`); }
    else if (event.event === 'run') line(`kept ${event.run}`);
    else if (event.event === 'error') line(`error: ${event.message}${event.hint ? ` ${event.hint}` : ''}`, 'cut');
    else if (event.event === 'interrupted') line(`interrupted; ${event.text}`, 'cut');
  };
  const state = (job) => {
    const active = ['queued', 'running', 'cancelling'].includes(job.state);
    jobRoot.dataset.state = job.state;
    part('state').textContent = JOB_WORDS[job.state] ?? job.state;
    part('error').textContent = job.error ?? '';
    part('error').hidden = !job.error;
    part('cancel').hidden = !active;
    part('cancel').disabled = job.state === 'cancelling';
    if (!active) { part('bar').hidden = true; if (job.state !== 'done') part('stage').textContent = ''; }
    part('runs').replaceChildren(...job.runs.map((run) => element('p', {}, element('a', {href: `/run/${encodeURIComponent(run)}`, className: 'main'}, 'Open ', element('bdi', {textContent: run})))));
    part('kept').hidden = !job.kept.length;
    part('kept-runs').textContent = job.kept.join(', ');
  };
  const act = (name, then) => part(name).addEventListener('click', async () => {
    try {
      then(await send(`${here}/${name}`, {}));
    } catch (error) {
      line(error.message, 'cut');
    }
  });
  act('cancel', () => {});
  act('resume', ({address}) => { location.href = address; });
  act('discard', () => { part('kept').hidden = true; line('what was kept of it is deleted'); });
  const source = new EventSource(`${here}/events`);
  source.addEventListener('message', ({data}) => JSON.parse(data).forEach(take));
  source.addEventListener('job', ({data}) => state(JSON.parse(data)));
  source.addEventListener('over', () => source.close());
  addEventListener('pagehide', () => source.close());
}

// --- captures on top of other pages -------------------------------------------------------------------------

for (const place of document.querySelectorAll('[data-jobs]')) {
  const show = (jobs) => {
    place.hidden = !jobs.length;
    place.replaceChildren(...jobs.map((job) => element('p', {},
      element('a', {href: `/jobs/${job.id}`}, element('bdi', {textContent: job.name})), ` ${JOB_WORDS[job.state] ?? job.state}`,
      ...(job.stage ? [' ', element('progress', {max: job.stage.total, value: job.stage.done, ariaLabel: `progress of ${job.name}`}), ` ${progressWords(job.stage)}`] : []))));
  };
  const look = async () => {
    try {
      const jobs = await ask('/api/jobs?active=1');
      show(jobs);
      setTimeout(look, jobs.length ? 2000 : 15000);
    } catch {
      setTimeout(look, 15000);  // the server has gone; perhaps it comes back
    }
  };
  look();
}
