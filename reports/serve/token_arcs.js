// Attention as arcs over the text, from the locked token to those that a head looks at.

/** Arcs in `place` between tokens of a list: `draw(from, rows)` with the weight of each position, `clear()`, `again()`. */
function tokenArcs(place, list) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('class', 'arcs');
  svg.setAttribute('aria-hidden', 'true');
  let last = null;
  const arc = (from, to, weight) => {
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    const lift = Math.min(60, 12 + Math.hypot(to.x - from.x, to.y - from.y) / 6);
    const middle = {x: (from.x + to.x) / 2, y: Math.max(2, Math.min(from.y, to.y) - lift)};
    path.setAttribute('d', `M${from.x},${from.y} Q${middle.x},${middle.y} ${to.x},${to.y}`);
    path.setAttribute('stroke-width', 0.75 + 6 * weight);
    path.setAttribute('stroke-opacity', 0.25 + 0.75 * Math.sqrt(weight));
    return path;
  };
  const again = () => {
    if (!last) return svg.remove();
    svg.style.height = '0';
    const from = list.boxOf(last.from);
    const there = last.rows.map(({position, weight}) => ({to: list.boxOf(position), weight, position}));
    svg.replaceChildren(...there.filter(({to, position}) => to && from && position !== last.from).map(({to, weight}) => arc(from, to, weight)));
    if (!svg.isConnected) place.append(svg);
    svg.style.height = `${place.scrollHeight}px`;
  };
  return {
    again,
    draw(from, rows) { last = {from, rows}; again(); },
    clear() { last = null; again(); },
  };
}
