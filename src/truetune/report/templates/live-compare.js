"use strict";
// Two or more runs over each other: a colour and a dash for each, and one chart for what they have in common.
(() => {
  const { given, make, listen } = Live;
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [14, 4], [5, 5, 1, 5], [3, 2, 3, 6], [16, 3, 4, 3]];
  const hidden = new Set();
  let stream = null;

  const draw = LiveCurves.drawing(together);
  const runs = given.runs.map((run, number) => Object.assign(
    LiveCurves.follow(run.id, changed), { name: run.name, tone: `run-${number % DASHES.length}`, dash: DASHES[number % DASHES.length] },
  ));

  function changed(curves, isSnapshot) {
    const waiting = runs.filter((run) => !run.source && !run.problem);
    byId("none").textContent = waiting.length ? "Reading the curves …" : runs.map((run) => run.problem).filter(Boolean).join(" ");
    draw();
    if (isSnapshot && !waiting.length && !stream) stream = listen(address, heard);
  }
  const read = () => runs.filter((run) => run.source);
  const address = () => `/events?runs=${given.runs.map((run) => run.id).join(",")}&from=${encodeURIComponent(runs.map((run) => run.position).join(","))}`;

  // --- over each other ---------------------------------------------------------------------------------------

  // Over steps alone: tokens and epochs by step are not the same in each.
  function together() {
    const names = [...new Set(read().flatMap((run) => run.source.charts.map((chart) => chart.name)))];
    return { axes: [], charts: names.map(chartOf) };
  }
  function chartOf(name) {
    const found = read().map((run) => [run, run.source.charts.find((chart) => chart.name === name)]).filter(([, chart]) => chart);
    const { about, main } = found[0][1];
    return { name, about, main, curves: found.flatMap(([run, chart]) => chart.curves.map((curve) => curveOf(run, chart, curve))) };
  }
  function curveOf(run, chart, curve) {
    const isOnly = chart.curves.length === 1;
    const isQuiet = curve.look === "faint";
    return {
      ...curve,
      name: isOnly ? run.name : `${run.name}, ${curve.name}`,
      tone: run.tone,
      dash: isQuiet ? [] : run.dash,
      isQuiet,
      isUnnamed: true,
      isHidden: hidden.has(run.id),
    };
  }

  for (const box of document.querySelectorAll("input[data-run]")) {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.dataset.run); else hidden.add(box.dataset.run);
      draw();
    });
  }

  // --- what comes --------------------------------------------------------------------------------------------

  const heard = {
    lines: (found, position) => {
      const number = runs.findIndex((run) => run.id === found.run);
      runs[number]?.hear(found.lines, position.split(",")[number]);
    },
    restarted: (found) => runs.find((run) => run.id === found.run)?.ask(),
    head: (found) => {
      const status = document.querySelector(`[data-status="${found.run}"]`);
      status.className = `status ${found.head.tone}`;
      status.textContent = found.head.status;
      const steps = document.querySelector(`[data-steps="${found.run}"]`);
      const { steps: done, total_steps: all } = found.head;
      steps.replaceChildren(...(done === null ? [] : [make("span", {}, `step ${Numbers.whole(done)}${all === null ? "" : ` of ${Numbers.whole(all)}`}`)]));
    },
  };
})();
