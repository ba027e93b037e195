/** Dark for reading rooms, light for offices: as the system says, until the button says otherwise. */

import { byId, setText } from "./dom.js";

/** Follow the system's setting, and the button. */
export function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: light)");
  const button = byId("theme");
  let chosen = false;
  const use = (/** @type {boolean} */ light) => {
    document.documentElement.dataset.theme = light ? "light" : "dark";
    setText(button, light ? "Dark" : "Light");
    button.setAttribute("aria-label", light ? "Use dark colours" : "Use light colours");
  };
  use(system.matches);
  system.addEventListener("change", () => chosen || use(system.matches));
  button.addEventListener("click", () => {
    chosen = true;
    use(document.documentElement.dataset.theme !== "light");
  });
}
