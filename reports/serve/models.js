// What `alab layers` says of the model that the address names.

const modelRoot = document.getElementById('model');
if (modelRoot) {
  const part = (name) => modelRoot.querySelector(`[data-part="${name}"]`);
  const {model, gguf} = modelRoot.dataset;
  ask(`/api/models/layers?${new URLSearchParams({model, gguf})}`).then((facts) => {
    const {layers, hidden_size: width, heads, vocabulary, context} = facts;
    part('said').remove();
    part('facts').append(...Object.entries({class: facts.class, layers, width, heads, vocabulary, context: context ?? 'not said'})
      .map(([name, value]) => element('div', {}, element('dt', {textContent: name}), element('dd', {textContent: String(value)}))));
    part('text').textContent = facts.text;
    part('text').hidden = false;
  }, (error) => { part('said').textContent = error.message; });
}
