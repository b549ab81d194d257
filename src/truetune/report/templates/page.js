"use strict";
// What every page with scripts has: light and dark, and numbers as people read them. Texts are written as text, never as HTML.
const byId = (id) => document.getElementById(id);

const Theme = (() => {
  const root = document.documentElement;
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const changed = new Event("theme");
  const isDark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : system.matches);
  function show() {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    dispatchEvent(changed);
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
})();

const Numbers = (() => {
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });

  // Four digits; from 10,000 on all of them before the point.
  function told(value) {
    if (value == null) return "no number";
    const size = Math.abs(value);
    if (size >= 1e4) return whole.format(value);
    return size !== 0 && size < 1e-3 ? String(Number(value.toPrecision(4)).toExponential()) : String(Number(value.toPrecision(4)));
  }
  return { told, whole: (value) => whole.format(value), compact: (value) => compact.format(value) };
})();
