// The sheet: steps that are pages of their own, shown in a dialog over the page; and the search over exchanges.
// Links and forms with `data-sheet` open it. What is in it stays in it, as htmx's boosting does; a link or form with
// hx-boost="false" leaves it for a page.
"use strict";

(() => {
  const failed = "The service did not answer. Close this and try again.";

  // ---- The dialog -----------------------------------------------------------------------------------------------

  let sheet = null;

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function makeSheet() {
    const close = element("button", { type: "button", class: "sheet-close", "aria-label": "Close" }, "×");
    const status = element("p", { class: "visually-hidden", role: "status" });
    const body = element("div", {
      id: "sheet-body", "hx-boost": "true", "hx-target": "#sheet-body", "hx-swap": "innerHTML", "hx-push-url": "false",
    });
    const dialog = element("dialog", { id: "sheet", class: "sheet", "aria-labelledby": "sheet-title" }, close, status, body);
    document.body.append(dialog);
    window.htmx.process(dialog);
    close.addEventListener("click", () => dialog.close());
    // The event "close" comes later, and until then what was typed would still be in the page.
    new MutationObserver(() => { if (!dialog.open) onClose(); }).observe(dialog, { attributeFilter: ["open"] });
    return { dialog, body, status, opener: null };
  }

  function openSheet(opener, method, url, values) {
    sheet ??= makeSheet();
    sheet.opener = opener;
    showWaiting(opener.dataset.busy || "Loading …");
    sheet.dialog.showModal();
    window.htmx.ajax(method, url, { source: sheet.body, target: sheet.body, swap: "innerHTML", values });
  }

  // What was typed leaves the page with the dialog.
  function onClose() {
    window.htmx.trigger(sheet.body, "htmx:abort");
    sheet.body.replaceChildren();
    sheet.status.textContent = "";
    if (sheet.opener.isConnected) return;
    // The opener was drawn again meanwhile, as accounts are when one is added.
    const successor = sheet.opener.id && document.getElementById(sheet.opener.id);
    (successor || document.querySelector("main")).focus();
  }

  function showWaiting(text) {
    const title = element("h2", { id: "sheet-title", class: "sheet-title", tabindex: "-1" }, text);
    sheet.body.replaceChildren(element("header", { class: "sheet-head" }, title));
  }

  function showFailure() {
    sheet.body.querySelector("#sheet-failure")?.remove();
    const notice = element("div", { id: "sheet-failure", class: "notice bad", tabindex: "-1" }, failed);
    sheet.body.prepend(notice);
    notice.focus();
  }

  function isOpen() {
    return sheet !== null && sheet.dialog.open;
  }

  // The first field that is wrong, else what is said about the form, else what one does first, else the title.
  function focusFirst(root) {
    const first = ["[aria-invalid]", "#sheet-refusal", "[data-first]", "#sheet-title"];
    const found = first.map((selector) => root.querySelector(selector)).find(Boolean);
    found?.focus();
  }

  document.addEventListener("click", (event) => {
    const opener = event.target.closest("a[data-sheet]");
    const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    if (opener && plain && window.htmx) {
      event.preventDefault();
      openSheet(opener, "GET", opener.getAttribute("href"), {});
    }
    const closer = event.target.closest("[data-closes]");
    if (closer && isOpen()) {
      event.preventDefault();
      sheet.dialog.close();
    }
    // On the page of accounts the link leads to a place in it, and the stream has brought the account.
    if (event.target.closest("[data-done]") && isOpen()) sheet.dialog.close();
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("form[data-sheet]") || !window.htmx) return;
    event.preventDefault();
    openSheet(form, "POST", form.getAttribute("action"), Object.fromEntries(new FormData(form)));
  });

  document.addEventListener("htmx:beforeRequest", (event) => {
    const form = event.target.closest?.("#sheet form");
    if (!form) return;
    const text = form.dataset.busy || "One moment …";
    const shown = form.querySelector(".busy");
    if (shown) shown.textContent = text;
    sheet.status.textContent = text;
    for (const button of form.querySelectorAll("button")) button.disabled = true;
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    const form = event.target.closest?.("#sheet form");
    if (!form) return;
    const shown = form.querySelector(".busy");
    if (shown) shown.textContent = "";
    sheet.status.textContent = "";
    for (const button of form.querySelectorAll("button")) button.disabled = false;
  });

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.target.id === "sheet-body" && !isOpen()) event.detail.shouldSwap = false;
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target.id !== "sheet-body") return;
    sheet.dialog.scrollTop = 0;
    focusFirst(sheet.body);
  });

  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => { if (isOpen()) showFailure(); });
  }

  // ---- Search and filters ---------------------------------------------------------------------------------------

  const announcements = new Map();

  function applyFilters(form) {
    const id = form.dataset.filtersOf;
    const items = [...document.getElementById(id).children];
    const search = form.elements.q.value.trim().toLowerCase();
    const chosen = form.elements.filter.value;
    const counts = new Map();
    let shown = 0;
    for (const item of items) {
      const filters = item.dataset.filters.split(" ");
      const found = item.dataset.search.includes(search);
      if (found) for (const filter of filters) counts.set(filter, (counts.get(filter) ?? 0) + 1);
      item.hidden = !(found && filters.includes(chosen));
      if (!item.hidden) shown += 1;
    }
    for (const count of form.querySelectorAll("[data-count-of]")) {
      count.textContent = counts.get(count.dataset.countOf) ?? 0;
    }
    const around = form.parentElement;
    around.querySelector(`[data-nothing-of="${id}"]`).hidden = shown > 0;
    announce(around.querySelector(`[data-shown-of="${id}"]`), shown, items.length);
  }

  // A person who types is told the number once they pause.
  function announce(status, shown, total) {
    clearTimeout(announcements.get(status));
    const all = `${total} ${total === 1 ? "exchange" : "exchanges"}`;
    const text = shown === total ? all : `${shown} of ${total} exchanges`;
    announcements.set(status, setTimeout(() => { status.textContent = text; announcements.delete(status); }, 250));
  }

  function formOf(event) {
    return event.target.closest?.("form[data-filters-of]");
  }

  document.addEventListener("input", (event) => { if (formOf(event)) applyFilters(formOf(event)); });

  // Enter goes to the first exchange that was found. Capturing comes before htmx, which would load the list again.
  document.addEventListener("submit", (event) => {
    const form = formOf(event);
    if (!form) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    document.getElementById(form.dataset.filtersOf).querySelector("li:not([hidden]) a")?.focus();
  }, true);

  document.addEventListener("click", (event) => {
    const id = event.target.closest("[data-clears]")?.dataset.clears;
    const form = id && document.querySelector(`form[data-filters-of="${id}"]`);
    if (!form) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    form.elements.q.value = "";
    form.elements.filter.value = "all";
    applyFilters(form);
    form.elements.q.focus();
  }, true);

  // ---- The sheet as a page of its own ---------------------------------------------------------------------------

  const page = document.querySelector("[data-sheet-page]");
  if (page?.querySelector("[aria-invalid], #sheet-refusal")) focusFirst(page);
})();
