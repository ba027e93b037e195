/** Buttons that take each other's place under the pointer. */

/**
 * The second press of a double click on one of them does nothing: it was not meant for what has come under the pointer
 * since, and takes the focus from nothing. A press that comes a moment later the style sheet keeps from the new button.
 *
 * @param {HTMLElement} place in which they stand
 * @param {HTMLElement[]} buttons
 */
export function keepApart(place, buttons) {
  let began = false;
  document.addEventListener("mousedown", (event) => {
    const pressed = /** @type {Element} */ (event.target);
    if (event.detail < 2) began = buttons.some((button) => button.contains(pressed));
    if (pressed === place || (began && event.detail > 1)) event.preventDefault();
  });
  const swallow = (/** @type {MouseEvent} */ event) => {
    if (!began || event.detail < 2) return;
    event.preventDefault();
    event.stopPropagation();
  };
  document.addEventListener("click", swallow, { capture: true });
}
