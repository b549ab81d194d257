"use strict";
// The curves of a run. Everything here reads numbers and names from one JSON block, and writes text, never HTML.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  // --- light and dark ----------------------------------------------------------------------------------------

  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = byId("theme");
  const isDark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : system.matches);
  const nameTheme = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.hidden = false;
  nameTheme();
  theme.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    nameTheme();
    redraw();
  });
  system.addEventListener("change", () => { nameTheme(); redraw(); });

  // --- what is drawn -----------------------------------------------------------------------------------------

  const source = JSON.parse(byId("data-of-curves").textContent);
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const state = { axis: null, log: false, zoom: null };
  let plots = [];
  if (!figures.length) return;

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
  const toAxis = (step) => (state.axis ? between(state.axis.steps, state.axis.values, step) : step);
  const toStep = (value) => (state.axis ? between(state.axis.values, state.axis.steps, value) : value);

  const curves = source.charts.flatMap((chart) => chart.curves);
  const ends = [Math.min(...curves.map((each) => each.steps[0])), Math.max(...curves.map((each) => each.steps.at(-1)))];
  if (ends[0] === ends[1]) ends[1] += 1;

  // All curves of a chart over one axis that reaches from end to end; undefined where a curve has no point.
  function joined(chart) {
    const tables = chart.curves.map((each) => [each.steps.map(toAxis), each.values]);
    return uPlot.join([...tables, [ends.map(toAxis), [null, null]]]).slice(0, -1);
  }

  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  function colour(name) {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  function told(value) {
    if (value == null) return "no number";
    const size = Math.abs(value);
    if (size >= 1e4) return whole.format(value);
    return size !== 0 && size < 1e-3 ? String(Number(value.toPrecision(4)).toExponential()) : String(Number(value.toPrecision(4)));
  }
  const tick = (value, most) => (value == null ? "" : most >= 1e4 ? compact.format(value) : told(value));
  const place = (value) => (state.axis && state.axis.name === "epochs" ? `epoch ${told(value)}` : `${state.axis ? state.axis.name : "step"} ${whole.format(value)}`);

  // The point of a curve that is nearest to the left of a place, which may be another curve's.
  function nearest(plot, series, index) {
    const values = plot.data[series];
    let at = index;
    while (at > 0 && values[at] === undefined) at -= 1;
    return at;
  }

  function read(plot, index) {
    const named = plot.series.slice(1).map((series, number) => {
      const value = plot.data[number + 1][nearest(plot, number + 1, index)];
      return value === undefined ? null : [series.label, told(value)];
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

  // --- zoom: one for all charts ------------------------------------------------------------------------------

  function zoomed(plot, key) {
    if (key !== "x") return;
    const { min, max } = plot.scales.x;
    const all = ends.map(toAxis);
    const isWhole = min <= all[0] && max >= all[1];
    state.zoom = isWhole ? null : [toStep(min), toStep(max)];
    byId("whole").disabled = isWhole;
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

  // --- the keyboard ------------------------------------------------------------------------------------------

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
      byId("said").textContent = `${at}: ${named.map((pair) => pair.join(" ")).join(", ")}`;
    } else return;
    event.preventDefault();
  }

  // --- drawing -----------------------------------------------------------------------------------------------

  const LOOKS = {
    line: { width: 2, stroke: "accent", points: { show: false } },
    faint: { width: 1, stroke: "accent", alpha: 0.35, points: { show: false } },
    points: { width: 1.5, stroke: "second", points: { show: true, size: 7, fill: "second" } },
  };
  const WHOLE = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();

  function seriesOf(curve) {
    // A line needs two points.
    const look = LOOKS[curve.values.length > 1 ? curve.look : "points"];
    const stroke = colour(LOOKS[curve.look].stroke);
    const points = look.points.show ? { ...look.points, fill: stroke, stroke } : look.points;
    return { label: curve.name, ...look, stroke, points };
  }
  function optionsOf(chart, box, tip) {
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: colour("dim"), font, grid: { stroke: colour("edge"), width: 1 }, ticks: { show: false } };
    const values = (_, splits) => splits.map((each) => tick(each, Math.abs(splits.at(-1))));
    const isLog = state.log && chart.curves.every((each) => each.values.every((value) => value === null || value > 0));
    const [min, max] = state.zoom ? state.zoom.map(toAxis) : ends.map(toAxis);
    return {
      ...sizeOf(box),
      legend: { show: false },
      cursor: { sync: { key: "run", setSeries: false }, drag: { x: true, y: false, dist: 5 }, points: { size: 7 }, dataIdx: nearest },
      scales: { x: { time: false, min, max }, y: { distr: isLog ? 3 : 1 } },
      series: [{}, ...chart.curves.map(seriesOf)],
      axes: [{ ...axis, values, size: 30, gap: 6, ...(state.axis?.name === "epochs" ? {} : { incrs: WHOLE }) }, { ...axis, values, size: 58, gap: 6 }],
      hooks: { setScale: [zoomed], setCursor: [(plot) => showTip(plot, tip)] },
    };
  }
  const sizeOf = (box) => ({ width: box.clientWidth, height: box.closest(".main") ? 320 : 210 });

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
    return plot;
  }
  function redraw() {
    for (const plot of plots) plot.destroy();
    plots = [];
    plots = figures.map(draw);
  }

  redraw();
  byId("controls").hidden = false;
  figures.forEach((figure, number) => {
    const box = figure.querySelector(".live");
    box.tabIndex = 0;
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", figure.querySelector("svg").getAttribute("aria-label"));
    box.setAttribute("aria-describedby", "how");
    box.addEventListener("keydown", (event) => onKey(plots[number], event));
    new ResizeObserver(() => plots[number].setSize(sizeOf(box))).observe(box);
  });
  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.addEventListener("change", () => {
      state.axis = Number(input.value) ? source.axes[Number(input.value) - 1] : null;
      redraw();
    });
  }
  byId("log").addEventListener("change", (event) => { state.log = event.target.checked; redraw(); });
  byId("whole").addEventListener("click", showAll);

  // On paper: all that is folded, and what is not drawn by scripts.
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not(.long)")) each.open = true;
  });
})();
