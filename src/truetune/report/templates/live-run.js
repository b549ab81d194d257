"use strict";
// One run while it trains: its curves grow, its figures follow, its log goes on.
(() => {
  const { given, make, duration, size, moment, listen, tell } = Live;
  const LOG = 60_000;
  let stream = null;

  // --- curves ------------------------------------------------------------------------------------------------

  const draw = LiveCurves.drawing(() => run.source);
  const run = LiveCurves.follow(given.id, (curves, isSnapshot) => {
    byId("none").textContent = curves.problem || (curves.source?.charts.length ? "" : "No step has been logged yet.");
    if (curves.source) draw();
    if (isSnapshot && curves.source && !stream) stream = listen(address, heard);
  });
  const address = () => `/events?runs=${given.id}&from=${encodeURIComponent(run.position)}`;

  // --- figures -----------------------------------------------------------------------------------------------

  function card(name, value, about = "") {
    return make("div", {}, make("dt", {}, name), make("dd", {}, value, make("span", {}, about)));
  }
  function* cards(head) {
    if (head.eval_loss !== null) yield card("Validation loss", Numbers.told(head.eval_loss), head.best_eval_loss === null ? "" : `best ${Numbers.told(head.best_eval_loss)}`);
    if (head.loss !== null) yield card("Training loss", Numbers.told(head.loss));
    if (head.steps !== null) yield card("Steps", Numbers.whole(head.steps), head.total_steps === null ? "" : `of ${Numbers.whole(head.total_steps)}`);
    if (head.seconds_left !== null) yield card("Time left", duration(head.seconds_left < 120 ? head.seconds_left : 60 * Math.round(head.seconds_left / 60)).replace(" 00 s", ""), "about");
    if (head.seconds !== null) yield card("Time", duration(head.seconds));
    if (head.speed !== null) yield card("Tokens a second", Numbers.told(head.speed));
    if (head.learning_rate !== null) yield card("Learning rate", Numbers.told(head.learning_rate));
    if (head.memory !== null) yield card("Memory", size(head.memory));
  }
  function* sentence(head) {
    if (head.problem) yield head.problem;
    if (head.model) yield head.model;
    if (head.data) yield head.data;
    if (head.started) yield `started ${moment(head.started)}`;
  }
  function show(head) {
    const status = byId("status");
    status.className = `status ${head.tone}`;
    status.textContent = head.status;
    byId("sentence").textContent = [...sentence(head)].join(" · ");
    byId("figures").replaceChildren(...cards(head));
    const share = head.total_steps ? (head.steps ?? 0) / head.total_steps : null;
    byId("done").hidden = share === null;
    byId("done").value = share ?? 0;
    byId("done").textContent = share === null ? "" : `${Math.round(share * 100)} %`;
    document.title = head.status === "running" && share !== null ? `${Math.floor(share * 100)} % · ${given.name}` : given.name;
  }

  // --- the log -----------------------------------------------------------------------------------------------

  // Its end, which stays in sight unless somebody has scrolled up to read.
  function write(text, isWhole) {
    const box = byId("log-text");
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const whole = isWhole ? text : box.textContent + text;
    const from = whole.length > LOG ? whole.indexOf("\n", whole.length - LOG) + 1 : 0;
    box.textContent = whole.slice(from);
    byId("log-section").hidden = !whole;
    if (isAtEnd || isWhole) box.scrollTop = box.scrollHeight;
  }

  const heard = {
    lines: (found, position) => run.hear(found.lines, position),
    restarted: () => run.ask(),
    head: (found) => show(found.head),
    log: (found) => write(found.text, found.is_whole),
    gone: () => tell("error", "the run is no longer there"),
  };
})();
