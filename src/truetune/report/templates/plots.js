"use strict";
// Charts that share an axis, a zoom and a cursor: of one run in its report, of one or several in the live page.
const Plots = (() => {
  const { told, whole, compact } = Numbers;
  const LOOKS = {
    line: { width: 2, stroke: "accent", points: { show: false } },
    faint: { width: 1, stroke: "accent", alpha: 0.35, points: { show: false } },
    points: { width: 1.5, stroke: "second", points: { show: true, size: 7, fill: "second" } },
  };
  const WHOLE = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();

  // A value between the known ones, as a straight line runs; beyond them the nearest.
  function between(from, to, at) {
    let low = 0;
    let high = from.length - 1;
    if (at <= from[low]) return to[low];
    if (at >= from[high]) return to[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (from[middle] <= at) low = middle; else high = middle;
    }
    return to[low] + ((to[high] - to[low]) * (at - from[low])) / (from[high] - from[low]);
  }

  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  function colour(name) {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }

  const tick = (value, most) => (value == null ? "" : most >= 1e4 ? compact(value) : told(value));

  // The point of a curve that is nearest to the left of a place, which may be another curve's.
  function nearest(plot, series, index) {
    const values = plot.data[series];
    let at = index;
    while (at > 0 && values[at] === undefined) at -= 1;
    return at;
  }

  function seriesOf(curve) {
    // A line needs two points.
    const look = LOOKS[curve.values.length > 1 ? curve.look : "points"];
    const stroke = colour(curve.tone ?? LOOKS[curve.look].stroke);
    const points = look.points.show ? { ...look.points, fill: stroke, stroke } : look.points;
    return { label: curve.name, ...look, stroke, points, dash: curve.dash, show: !curve.isHidden, isQuiet: curve.isQuiet };
  }

  // `source`: axes by step, and charts with their curves. `figures()`: an element for each chart. `button` shows all of
  // it, and `said` is where values are read out.
  function over(source, { figures, button, said }) {
    const state = { axis: 0, log: false, zoom: null };
    const known = new WeakSet();
    let plots = [];
    let drawn = "";
    let ends = [0, 1];

    const axis = () => source.axes[state.axis - 1] ?? null;
    const toAxis = (step) => (axis() ? between(axis().steps, axis().values, step) : step);
    const toStep = (value) => (axis() ? between(axis().values, axis().steps, value) : value);
    const place = (value) => (axis()?.name === "epochs" ? `epoch ${told(value)}` : `${axis()?.name ?? "step"} ${whole(value)}`);
    const extent = () => (state.zoom ?? ends).map(toAxis);

    function take(given) {
      source = given;
      const shown = source.charts.flatMap((chart) => chart.curves).filter((each) => each.steps.length && !each.isHidden);
      ends = [Math.min(...shown.map((each) => each.steps[0])), Math.max(...shown.map((each) => each.steps.at(-1)))];
      if (!shown.length) ends = [0, 1];
      if (ends[0] === ends[1]) ends[1] += 1;
    }

    // All curves of a chart over one axis that reaches from end to end; undefined where a curve has no point.
    function joined(chart) {
      const tables = chart.curves.map((each) => [each.steps.map(toAxis), each.values]);
      return uPlot.join([...tables, [ends.map(toAxis), [null, null]]]).slice(0, -1);
    }

    // --- reading ---------------------------------------------------------------------------------------------

    function read(plot, index) {
      const named = plot.series.slice(1).map((series, number) => {
        const value = plot.data[number + 1][nearest(plot, number + 1, index)];
        return value === undefined || !series.show || series.isQuiet ? null : [series.label, told(value)];
      });
      return [place(plot.data[0][index]), named.filter(Boolean)];
    }

    function showTip(plot, tip) {
      const index = plot.cursor.idx;
      tip.hidden = index == null || plot.cursor.left < 0;
      if (tip.hidden) return;
      const [at, named] = read(plot, index);
      tip.replaceChildren(at, ...named.map(([name, value]) => {
        const line = document.createElement("div");
        const strong = document.createElement("b");
        strong.textContent = value;
        line.append(`${name} `, strong);
        return line;
      }));
      const room = plot.over.clientWidth - tip.offsetWidth - 14;
      tip.style.left = `${plot.cursor.left > room ? Math.max(plot.cursor.left - tip.offsetWidth - 14, 0) : plot.cursor.left + 14}px`;
      tip.style.top = "6px";
    }

    // --- zoom: one for all charts ----------------------------------------------------------------------------

    function zoomed(plot, key) {
      if (key !== "x") return;
      const { min, max } = plot.scales.x;
      const all = ends.map(toAxis);
      const isWhole = min <= all[0] && max >= all[1];
      state.zoom = isWhole ? null : [toStep(min), toStep(max)];
      button.disabled = isWhole;
      for (const other of plots) {
        if (other.scales.x.min !== min || other.scales.x.max !== max) other.setScale("x", { min, max });
      }
    }
    function showAll() {
      const [min, max] = ends.map(toAxis);
      for (const plot of plots) plot.setScale("x", { min, max });
    }
    function zoomBy(plot, factor) {
      const { min, max } = plot.scales.x;
      const all = ends.map(toAxis);
      const index = plot.cursor.idx;
      const middle = index == null ? (min + max) / 2 : plot.data[0][index];
      const low = Math.max(middle - (middle - min) * factor, all[0]);
      const high = Math.min(middle + (max - middle) * factor, all[1]);
      if (high > low) plot.setScale("x", { min: low, max: high });
    }

    // --- the keyboard ----------------------------------------------------------------------------------------

    // The next place at which any curve of the chart has a point.
    function moved(plot, by) {
      const xs = plot.data[0];
      const { min, max } = plot.scales.x;
      const first = xs.findIndex((x) => x >= min);
      const last = xs.findLastIndex((x) => x <= max);
      const now = plot.cursor.idx ?? (by > 0 ? first - 1 : last + 1);
      return Math.min(Math.max(now + by, first), last);
    }
    function onKey(plot, event) {
      const steps = { ArrowRight: 1, ArrowLeft: -1, PageUp: 20, PageDown: -20, Home: -Infinity, End: Infinity };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "+" || event.key === "=") zoomBy(plot, 0.5);
      else if (event.key === "-") zoomBy(plot, 2);
      else if (event.key === "0" || event.key === "Escape") showAll();
      else if (event.key in steps) {
        const index = moved(plot, steps[event.key]);
        plot.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top: 10 }, true, true);
        const [at, named] = read(plot, index);
        said.textContent = `${at}: ${named.map((pair) => pair.join(" ")).join(", ")}`;
      } else return;
      event.preventDefault();
    }

    // --- drawing ---------------------------------------------------------------------------------------------

    const sizeOf = (box) => ({ width: box.clientWidth, height: box.closest(".main") ? 320 : 210 });
    const plotOf = (figure) => plots[Number(figure.dataset.chart)];

    function optionsOf(chart, box, tip) {
      const font = `12px ${getComputedStyle(document.body).fontFamily}`;
      const line = { stroke: colour("dim"), font, grid: { stroke: colour("edge"), width: 1 }, ticks: { show: false } };
      const values = (_, splits) => splits.map((each) => tick(each, Math.abs(splits.at(-1))));
      const isLog = state.log && chart.curves.every((each) => each.values.every((value) => value === null || value > 0));
      const [min, max] = extent();
      return {
        ...sizeOf(box),
        legend: { show: false },
        cursor: { sync: { key: "run", setSeries: false }, drag: { x: true, y: false, dist: 5 }, points: { size: 7 }, dataIdx: nearest },
        scales: { x: { time: false, min, max }, y: { distr: isLog ? 3 : 1 } },
        series: [{}, ...chart.curves.map(seriesOf)],
        axes: [{ ...line, values, size: 30, gap: 6, ...(axis()?.name === "epochs" ? {} : { incrs: WHOLE }) }, { ...line, values, size: 58, gap: 6 }],
        hooks: { setScale: [zoomed], setCursor: [(plot) => showTip(plot, tip)] },
      };
    }

    function draw(figure) {
      const chart = source.charts[Number(figure.dataset.chart)];
      const box = figure.querySelector(".live");
      const tip = document.createElement("div");
      tip.className = "tip";
      tip.hidden = true;
      figure.classList.add("drawn");
      box.hidden = false;
      const plot = new uPlot(optionsOf(chart, box, tip), joined(chart), box);
      plot.over.append(tip);
      if (!known.has(figure)) makeReadable(figure, chart, box);
      return plot;
    }
    function makeReadable(figure, chart, box) {
      known.add(figure);
      box.tabIndex = 0;
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", figure.querySelector("svg")?.getAttribute("aria-label") ?? chart.name);
      box.setAttribute("aria-describedby", "how");
      box.addEventListener("keydown", (event) => onKey(plotOf(figure), event));
      new ResizeObserver(() => { if (box.isConnected) plotOf(figure)?.setSize(sizeOf(box)); }).observe(box);
    }
    // What cannot change without drawing anew: a curve's line begins at its second point.
    const shape = () => JSON.stringify(source.charts.map((chart) => [chart.name, chart.curves.map((curve) => [curve.name, curve.look, curve.values.length > 1, !!curve.isHidden])]));
    function redraw() {
      for (const plot of plots) plot.destroy();
      plots = [];
      plots = figures().map(draw);
      drawn = shape();
    }

    // Other values for the same curves, drawn into what is there; anything else is drawn anew.
    function update(given) {
      take(given);
      if (shape() !== drawn) { redraw(); return; }
      const [min, max] = extent();
      plots.forEach((plot, number) => {
        plot.setData(joined(source.charts[number]), false);
        plot.setScale("x", { min, max });
      });
    }

    take(source);
    redraw();
    button.addEventListener("click", showAll);
    addEventListener("theme", redraw);
    return {
      update,
      setAxis: (number) => { state.axis = number; redraw(); },
      setLog: (isLog) => { state.log = isLog; redraw(); },
    };
  }

  // The choices above the charts: what they are drawn over, and the logarithm.
  function follow(plots) {
    for (const input of document.querySelectorAll("input[name=axis]")) {
      input.addEventListener("change", () => plots.setAxis(Number(input.value)));
    }
    byId("log").addEventListener("change", (event) => plots.setLog(event.target.checked));
    byId("controls").hidden = false;
  }

  return { over, follow };
})();
