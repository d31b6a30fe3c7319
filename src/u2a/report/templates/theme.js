"use strict";
// The reader's scheme holds until the button is pressed; figures hear of a change as "u2a-theme".
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const say = () => {
    button.setAttribute("aria-pressed", String(dark()));
    document.dispatchEvent(new Event("u2a-theme"));
  };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; say(); });
  system.addEventListener("change", say);
  button.hidden = false;
  say();
})();
