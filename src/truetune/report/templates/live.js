"use strict";
// What the live pages share: elements made of text, spells of time, and a stream of events that comes back by itself.
const Live = (() => {
  // An element: properties, or attributes where it has no such property; children are elements or texts.
  function make(name, given = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(given)) {
      if (key in element) element[key] = value; else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  function duration(seconds) {
    if (seconds < 1) return "less than a second";
    const whole = Math.round(seconds);
    if (whole < 60) return `${whole} s`;
    const two = (value) => String(value).padStart(2, "0");
    const minutes = Math.floor(whole / 60);
    if (minutes < 10) return `${minutes} min ${two(whole % 60)} s`;
    if (minutes < 60) return `${Math.round(whole / 60)} min`;
    const hours = Math.floor(minutes / 60);
    if (hours < 24) return `${hours} h ${two(minutes % 60)} min`;
    return `${Math.floor(hours / 24)} d ${two(hours % 24)} h`;
  }

  function size(bytes) {
    for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
      if (bytes >= unit) return `${(bytes / unit).toPrecision(3)} ${name}`;
    }
    return `${bytes} bytes`;
  }

  // In the reader's own time, to the minute.
  function moment(text) {
    const at = text ? new Date(text) : NaN;
    if (Number.isNaN(Number(at))) return "";
    const two = (value) => String(value).padStart(2, "0");
    return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
  }

  function bar(done) {
    const filled = make("i", {});
    filled.style.width = `${Math.min(Math.max(done, 0), 1) * 100}%`;
    return make("span", { className: "bar", "aria-hidden": "true" }, filled);
  }

  function tell(state, words) {
    const link = byId("link");
    link.className = `link ${state}`;
    link.textContent = words;
  }

  // Hears events from `address()`, which may say from where on. A page that nobody sees hears none, and none are sent.
  function listen(address, heard) {
    let stream = null;
    function close() {
      stream?.close();
      stream = null;
    }
    function open() {
      if (stream || document.hidden) return;
      stream = new EventSource(address());
      stream.onopen = () => tell("good", "live");
      stream.onerror = () => {
        const isOver = stream?.readyState === EventSource.CLOSED;
        tell("warning", isOver ? "not connected" : "connecting again …");
        if (isOver) close();
      };
      for (const [name, hear] of Object.entries(heard)) {
        stream.addEventListener(name, (event) => hear(JSON.parse(event.data), event.lastEventId));
      }
    }
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    addEventListener("pagehide", close);
    open();
    return { again: () => { close(); open(); } };
  }

  const given = JSON.parse(byId("given").textContent);
  return { given, make, duration, size, moment, bar, tell, listen };
})();
