"use strict";
// Ages that grow, and the state of the connection. All else on the page is made by the service.

(function () {
  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];
  const born = new WeakMap();

  function ageText(seconds) {
    const whole = Math.floor(seconds);
    for (const [size, unit] of UNITS) {
      if (whole >= 2 * size) return Math.floor(whole / size) + " " + unit;
    }
    return whole + " s";
  }

  // An element says how old its figures were when it was made; from then on they grow older here.
  function showAges() {
    const now = Date.now();
    for (const element of document.querySelectorAll("[data-age]")) {
      if (!born.has(element)) born.set(element, now - 1000 * Number(element.dataset.age));
      const text = ageText(Math.max(0, now - born.get(element)) / 1000);
      if (element.textContent !== text) element.textContent = text;
    }
  }

  function say(text, state) {
    const place = document.getElementById("connection");
    if (!place || place.textContent === text) return;
    place.textContent = text;
    place.dataset.state = state;
    document.body.classList.toggle("disconnected", state === "lost");
  }

  // Which details were opened or closed by hand stays so when the service sends them again.
  const toggled = new Map();
  document.addEventListener("click", function (event) {
    const summary = event.target instanceof Element ? event.target.closest("details[id] > summary") : null;
    if (summary) toggled.set(summary.parentElement.id, !summary.parentElement.open);
  });

  function keepToggled(root) {
    for (const details of root.querySelectorAll("details[id]")) {
      if (toggled.has(details.id)) details.open = toggled.get(details.id);
    }
  }

  document.addEventListener("htmx:sseMessage", function (event) {
    keepToggled(event.target);
    showAges();
  });
  document.addEventListener("htmx:sseOpen", function () { say("live", "live"); });
  document.addEventListener("htmx:sseError", function () { say("connection lost, trying again", "lost"); });
  document.addEventListener("htmx:sseClose", function (event) {
    if (event.detail.type === "message") say("live updates have ended: load the page again", "lost");
  });
  window.addEventListener("pagehide", function () { document.body.classList.remove("disconnected"); });

  showAges();
  window.setInterval(showAges, 1000);
})();
