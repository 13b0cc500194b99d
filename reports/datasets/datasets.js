// A figure of a dataset is hidden while the chosen column is of the other kind; it waits until it is shown.
const drawShown = draw;
draw = (figure) => (figure.closest('.dataset') && !figure.checkVisibility() ? Promise.resolve() : drawShown(figure));
