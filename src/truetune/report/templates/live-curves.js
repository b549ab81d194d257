"use strict";
// The curves of runs that go on: a snapshot, thinned by the server, to which each logged line is appended as it comes.
const LiveCurves = (() => {
  const { make } = Live;
  const PATIENCE = 1500;
  const AXES = { tokens: "num_tokens", epochs: "epoch" };

  // A run's curves. `changed(curves)` is called whenever there is something new; `position` is where the lines end.
  function follow(id, changed) {
    const self = { id, source: null, position: "", problem: "", appended: 0, points: 0 };
    const seen = new Set();
    let isAsking = false;
    let isAskedAgain = false;

    async function ask() {
      if (isAsking) { isAskedAgain = true; return; }
      isAsking = true;
      try {
        const answer = await fetch(`/run/${id}/curves`);
        if (!answer.ok) throw new Error(`the server said ${answer.status}`);
        const found = await answer.json();
        Object.assign(self, { source: found.curves, position: found.position, problem: found.problem, appended: 0 });
        self.points = Math.max(0, ...curves().map((each) => each.steps.length));
        changed(self, true);
      } catch (error) {
        self.problem = `The curves could not be read: ${error.message}.`;
        changed(self, true);
      }
      setTimeout(() => {
        isAsking = false;
        if (isAskedAgain) { isAskedAgain = false; ask(); }
      }, PATIENCE);
    }
    const curves = () => self.source?.charts.flatMap((chart) => chart.curves) ?? [];

    // The lines that came, to the curves that have their names. False where a snapshot has to tell instead.
    function append(lines) {
      const named = curves().filter((each) => each.key);
      for (const each of named) seen.add(each.key);
      let isNew = false;
      for (const line of lines) {
        for (const name of Object.keys(line)) {
          isNew ||= !seen.has(name);
          seen.add(name);
        }
        for (const curve of named) {
          if (!(curve.key in line)) continue;
          const value = line[curve.key];
          push(curve, line.step, value === null ? null : value * curve.scale);
        }
        for (const axis of self.source.axes) {
          const value = line[AXES[axis.name]];
          if (value > axis.values.at(-1) && line.step > axis.steps.at(-1)) { axis.steps.push(line.step); axis.values.push(value); }
        }
      }
      return !isNew;
    }
    // What a snapshot had already is told again by a stream that began before it.
    function push(curve, step, value) {
      if (step < curve.steps.at(-1)) return;
      if (curve.steps.at(-1) === step) { curve.values[curve.values.length - 1] = value; return; }
      curve.steps.push(step);
      curve.values.push(value);
    }

    function hear(lines, position) {
      if (!self.source) return;
      const isWhole = append(lines);
      self.position = position;
      self.appended += lines.length;
      changed(self, false);
      // The smoothed line is the server's, and so is what is left out of a long curve.
      if (!isWhole || self.appended >= Math.max(10, self.points / 40)) ask();
    }

    ask();
    return Object.assign(self, { ask, hear });
  }

  function keysOf(chart) {
    return chart.curves.filter((each) => !each.isUnnamed).map((each) => make("span", { className: `key ${each.look}` }, each.name));
  }

  // A figure for each chart; those that are there stay, with the keyboard's place in them.
  function figuresFor(charts, grid) {
    const names = [...grid.children].map((each) => each.dataset.name);
    if (JSON.stringify(names) !== JSON.stringify(charts.map((each) => each.name))) grid.replaceChildren(...charts.map(figureOf));
    charts.forEach((chart, number) => grid.children[number].querySelector(".keys").replaceChildren(...keysOf(chart)));
  }
  function figureOf(chart, number) {
    const about = chart.about ? [make("span", { className: "about" }, chart.about)] : [];
    const caption = make("figcaption", {}, make("h3", {}, chart.name), ...about, make("span", { className: "keys" }));
    const figure = make("figure", { className: chart.main ? "chart main" : "chart" }, caption, make("div", { className: "live" }));
    figure.dataset.chart = number;
    figure.dataset.name = chart.name;
    return figure;
  }

  // Draws what `source()` has, now and whenever it is called again, at most a few times a second.
  function drawing(source) {
    const grid = byId("charts");
    let plots = null;
    let waiting = 0;
    function draw() {
      waiting = 0;
      const { axes, charts } = source();
      if (!charts.length) return;
      const isAsWas = plots && JSON.stringify(axes.map((each) => each.name)) === axesShown();
      figuresFor(charts, grid);
      if (!isAsWas) showAxes(axes);
      if (plots) {
        plots.update({ axes, charts });
        if (!isAsWas) plots.setAxis(Number(byId("axes").querySelector("input:checked").value));
        return;
      }
      plots = Plots.over({ axes, charts }, { figures: () => [...grid.children], button: byId("whole"), said: byId("said") });
      byId("log").addEventListener("change", (event) => plots.setLog(event.target.checked));
      byId("axes").addEventListener("change", (event) => plots.setAxis(Number(event.target.value)));
      byId("controls").hidden = false;
    }
    return () => { waiting ||= setTimeout(draw, plots ? 200 : 0); };
  }
  const axesShown = () => JSON.stringify([...byId("axes").querySelectorAll("input")].slice(1).map((each) => each.dataset.name));
  function showAxes(axes) {
    const chosen = byId("axes").querySelector("input:checked")?.dataset.name ?? "steps";
    byId("axes").hidden = !axes.length;
    byId("axes").replaceChildren(make("legend", {}, "Over"), ...["steps", ...axes.map((each) => each.name)].map((name, number) => {
      const input = make("input", { type: "radio", name: "axis", value: number, checked: name === chosen });
      input.dataset.name = name;
      return make("label", {}, input, ` ${name}`);
    }));
  }

  return { follow, drawing };
})();
