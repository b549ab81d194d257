"use strict";
// The runs there are: sorted, filtered, and chosen to be laid over each other. The table holds a few hundred at a time.
(() => {
  const { make, moment, bar, listen } = Live;
  const PAGE = 100;
  const words = new URLSearchParams(location.search);
  const runs = new Map();
  const chosen = new Set();
  const state = { sort: words.get("sort") ?? "started", isRising: words.get("order") === "up", filter: words.get("filter") ?? "", shown: PAGE };

  // --- which, and in what order ------------------------------------------------------------------------------

  const NUMBERS = new Set(["steps", "loss", "eval_loss", "speed"]);
  const share = (run) => (run.total_steps ? (run.steps ?? 0) / run.total_steps : run.steps);
  const value = (run) => (state.sort === "steps" ? share(run) : run[state.sort]);
  function compared(one, other) {
    const [first, second] = [value(one), value(other)];
    if (first === second) return one.name < other.name ? -1 : 1;
    if (first === null) return 1;
    if (second === null) return -1;
    return (first < second ? -1 : 1) * (state.isRising ? 1 : -1);
  }
  const text = (run) => `${run.name} ${run.status} ${run.model ?? ""} ${run.data ?? ""}`.toLowerCase();
  function wanted() {
    const asked = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    return [...runs.values()].filter((run) => asked.every((word) => text(run).includes(word))).sort(compared);
  }

  // --- the table ---------------------------------------------------------------------------------------------

  const tail = (path) => (path ? path.split("/").filter(Boolean).at(-1) ?? path : "");
  const cell = (title, content, kind = "") => make("td", { className: kind, title: content ? title : "" }, content);
  const number = (title, found, told) => cell(title, found === null ? "" : told(found), "number");
  // As many digits in each row, so that they can be compared at a glance.
  const loss = (value) => (value >= 0.001 && value < 1000 ? value.toFixed(3) : Numbers.told(value));

  function chooser(run) {
    const box = make("input", { type: "checkbox", checked: chosen.has(run.id), "aria-label": `choose ${run.name}` });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(run.id); else chosen.delete(run.id);
      showChosen();
    });
    return make("td", { className: "choose" }, box);
  }
  function steps(run) {
    const all = run.total_steps === null ? "" : ` / ${Numbers.whole(run.total_steps)}`;
    const told = run.steps === null ? [] : [`${Numbers.whole(run.steps)}${all}`];
    return make("td", { className: "steps", title: told.length ? "steps" : "" }, ...told, ...(run.total_steps ? [bar(share(run))] : []));
  }
  function row(run) {
    const name = make("td", { className: "name" }, make("a", { href: `/run/${run.id}` }, run.name));
    if (run.problem) name.append(make("span", { className: "about" }, run.problem));
    const status = make("td", {}, make("span", { className: `status ${run.tone}` }, run.status));
    return make("tr", {}, chooser(run), name, status, steps(run), number("loss", run.loss, loss), number("validation loss", run.eval_loss, loss), number("tokens a second", run.speed, Numbers.whole), cell("model", tail(run.model), "long"), cell("data", tail(run.data), "long"), cell("started", moment(run.started), "when"));
  }

  // Only rows whose run has changed are made anew, so that the keyboard keeps its place.
  const rows = new Map();
  function rowOf(run) {
    const kept = rows.get(run.id);
    if (kept?.run === run) return kept.row;
    const made = row(run);
    rows.set(run.id, { run, row: made });
    return made;
  }
  function show() {
    const found = wanted();
    const body = byId("runs");
    const wished = found.slice(0, state.shown).map(rowOf);
    if (wished.length !== body.children.length || wished.some((each, at) => body.children[at] !== each)) {
      const focused = document.activeElement;
      body.replaceChildren(...wished);
      if (focused?.isConnected && body.contains(focused)) focused.focus();
    }
    byId("more").hidden = found.length <= state.shown;
    byId("count").textContent = found.length === runs.size ? counted(runs.size) : `${Numbers.whole(found.length)} of ${counted(runs.size)}`;
    byId("nothing").hidden = found.length > 0;
    byId("nothing").textContent = runs.size ? "No run matches." : "No runs here yet. One appears as soon as it begins.";
    for (const head of document.querySelectorAll("th[data-sort]")) {
      const isIt = head.dataset.sort === state.sort;
      head.setAttribute("aria-sort", isIt ? (state.isRising ? "ascending" : "descending") : "none");
    }
    showChosen();
  }
  const counted = (count) => (count === 1 ? "1 run" : `${Numbers.whole(count)} runs`);
  function showChosen() {
    const there = [...chosen].filter((id) => runs.has(id));
    const button = byId("overlay");
    button.disabled = there.length < 2 || there.length > 8;
    button.textContent = there.length > 8 ? "Overlay: 8 at most" : there.length ? `Overlay ${counted(there.length)}` : "Overlay";
  }

  // --- what is asked for -------------------------------------------------------------------------------------

  function keep() {
    const asked = new URLSearchParams({ sort: state.sort, order: state.isRising ? "up" : "down", ...(state.filter && { filter: state.filter }) });
    history.replaceState(null, "", `/?${asked}`);
    state.shown = PAGE;
    show();
  }
  for (const head of document.querySelectorAll("th[data-sort]")) {
    head.querySelector("button").addEventListener("click", () => {
      const name = head.dataset.sort;
      const isAgain = state.sort === name;
      // A lower loss is better, and names go from A to Z; of all else the most comes first.
      const first = !(NUMBERS.has(name) || name === "started") || name === "loss" || name === "eval_loss";
      Object.assign(state, { sort: name, isRising: isAgain ? !state.isRising : first });
      keep();
    });
  }
  byId("search").value = state.filter;
  byId("search").addEventListener("input", (event) => { state.filter = event.target.value; keep(); });
  byId("more").addEventListener("click", () => { state.shown += PAGE; show(); });
  byId("overlay").addEventListener("click", () => { location.assign(`/compare?runs=${[...chosen].filter((id) => runs.has(id)).join(",")}`); });

  function take(found) {
    for (const run of found) runs.set(run.id, run);
  }
  listen(() => "/runs", {
    runs: (found) => { runs.clear(); take(found.runs); show(); },
    changed: (found) => {
      for (const id of found.gone) { runs.delete(id); rows.delete(id); }
      take(found.runs);
      show();
    },
  });
})();
