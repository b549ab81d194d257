"use strict";
// The report of a run: its curves come from one JSON block of the page.
(() => {
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  if (figures.length) {
    const source = JSON.parse(byId("data-of-curves").textContent);
    Plots.follow(Plots.over(source, { figures: () => figures, button: byId("whole"), said: byId("said") }));
  }

  // On paper: all that is folded, and what is not drawn by scripts.
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not(.long)")) each.open = true;
  });
})();
