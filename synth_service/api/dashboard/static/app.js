// What every page needs: times in the reader's zone, gentle updates of live parts, actions with confirmation,
// and word of a lost connection. Pages reach the rest of it as `window.dashboard`.
"use strict";

(() => {
  // --- Times --------------------------------------------------------------------------------------------------
  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const dated = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
  const UNITS = [[60, "s"], [60, "min"], [24, "h"], [365, "d"], [Infinity, "y"]];

  function ago(at) {
    let amount = (Date.now() - at) / 1000;
    // Clocks of two machines differ; nothing that is shown here lies in the future.
    if (amount < 5) return "just now";
    for (const [size, unit] of UNITS) {
      if (amount < size) return `${Math.floor(amount)} ${unit} ago`;
      amount /= size;
    }
    return "";
  }

  function showTime(element) {
    const at = new Date(element.dateTime);
    const form = element.dataset.form;
    const text = form === "clock" ? clock.format(at) : form === "exact" ? dated.format(at) : ago(at);
    if (element.textContent !== text) element.textContent = text;
    if (!element.title) element.title = exact.format(at);
  }

  function showTimes(root = document) {
    for (const element of root.querySelectorAll("time[data-form]")) showTime(element);
  }

  setInterval(() => {
    if (!document.hidden) showTimes();
  }, 10_000);
  document.addEventListener("visibilitychange", () => document.hidden || showTimes());

  // --- Updating in place --------------------------------------------------------------------------------------
  // hx-swap="morph" makes the old content equal to the new and leaves alone what did not change, so that focus,
  // selected text, ticked boxes and the movement of bars survive an update. Elements are matched by their id.

  // What this script itself adds to elements, which the server therefore does not send.
  const OWN_ATTRIBUTES = new Set(["title"]);

  function morph(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    const isSameTime = old.localName === "time" && old.getAttribute("datetime") === fresh.getAttribute("datetime");
    if (isSameTime) return;
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !OWN_ATTRIBUTES.has(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    if (old.localName === "time") old.removeAttribute("title");
    morphChildren(old, fresh);
  }

  function morphChildren(old, fresh) {
    const byId = new Map([...old.children].filter((each) => each.id).map((each) => [each.id, each]));
    const wanted = new Set([...fresh.children].map((each) => each.id).filter(Boolean));
    let place = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      // What has an id and is not wanted any more must not be turned into its successor.
      while (place && place.id && !wanted.has(place.id)) {
        const next = place.nextSibling;
        place.remove();
        place = next;
      }
      const known = child.id ? byId.get(child.id) : undefined;
      const isAlike = place && !place.id && !child.id && place.nodeName === child.nodeName;
      const match = known ?? (isAlike ? place : undefined);
      if (match && match.nodeName === child.nodeName) {
        if (match === place) place = place.nextSibling;
        else old.insertBefore(match, place);
        morph(match, child);
      } else {
        old.insertBefore(child, place);
      }
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  htmx.defineExtension("morph", {
    isInlineSwap: (style) => style === "morph",
    handleSwap(style, target, fragment) {
      if (style !== "morph") return false;
      const fresh = fragment instanceof DocumentFragment ? fragment.firstElementChild : fragment;
      if (fresh) morph(target, fresh);
      return [target];
    },
  });

  // --- Requests -----------------------------------------------------------------------------------------------
  const csrfToken = () => document.querySelector("meta[name=csrf-token]").content;

  function signIn() {
    location.assign(`/ui/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }

  // Calls a route of the API. Returns its JSON, or null where there is none; throws an Error with the words for
  // people, and with `problem` (RFC 9457) where the server sent one.
  async function request(method, url, { json, headers = {}, ...rest } = {}) {
    const options = { method, headers: { Accept: "application/json", "X-CSRF-Token": csrfToken(), ...headers }, ...rest };
    if (json !== undefined) {
      options.body = JSON.stringify(json);
      options.headers["Content-Type"] = "application/json";
    }
    let response;
    try {
      response = await fetch(url, options);
    } catch {
      throw new Error("The service cannot be reached. Nothing was changed; try again shortly.");
    }
    if (response.status === 401) signIn();
    const isJson = /[/+]json\b/.test(response.headers.get("content-type") ?? "");
    const body = isJson && response.status !== 204 ? await response.json() : null;
    if (!response.ok) {
      const words = [body?.detail, body?.hint].filter(Boolean).join(" ");
      throw Object.assign(new Error(words || `The service answered ${response.status}.`), { problem: body });
    }
    return body;
  }

  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.verb !== "get") event.detail.headers["X-CSRF-Token"] = csrfToken();
  });

  // --- Live parts ---------------------------------------------------------------------------------------------
  // An element with `data-live` asks for itself again and again (hx-trigger="every …s, refresh"). It shows the
  // version that it has, so that the answer is 304 while nothing has changed.
  const versions = new WeakMap();

  document.addEventListener("htmx:configRequest", (event) => {
    const { elt, headers } = event.detail;
    if (elt.hasAttribute("data-live") && versions.has(elt)) headers["If-None-Match"] = versions.get(elt);
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { xhr, target, requestConfig } = event.detail;
    const isLive = target.hasAttribute("data-live");
    if (xhr.status === 304) event.detail.shouldSwap = false;
    else if (isLive && requestConfig.elt === target) versions.set(target, xhr.getResponseHeader("ETag") ?? "");
    else if (isLive) versions.delete(target);
  });

  // A page that nobody looks at asks for nothing. It catches up when it is looked at again.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.elt.hasAttribute("data-live")) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-live]")) htmx.trigger(element, "refresh");
  });

  function showConnection(isLost) {
    document.querySelector("[data-connection-lost]").hidden = !isLost;
  }
  document.addEventListener("htmx:sendError", () => showConnection(true));
  document.addEventListener("htmx:afterRequest", (event) => {
    const status = event.detail.xhr?.status ?? 0;
    if (status === 401) signIn();
    else if (status > 0) showConnection(status >= 500);
  });
  document.addEventListener("htmx:afterSettle", (event) => showTimes(event.detail.elt));
  document.addEventListener("htmx:afterSwap", (event) => showTimes(event.detail.target ?? document));

  // --- Messages and confirmation ------------------------------------------------------------------------------
  function toast(text, kind = "done") {
    const element = document.createElement("div");
    element.className = kind === "error" ? "toast toast-error" : "toast";
    element.textContent = text;
    document.querySelector("[data-toasts]").append(element);
    setTimeout(() => element.remove(), kind === "error" ? 12_000 : 5_000);
  }

  // Resolves to whether the reader agreed.
  function confirmed({ title, text = "", action, isDangerous = false }) {
    const dialog = document.querySelector("[data-confirm-dialog]");
    dialog.querySelector("[data-confirm-title]").textContent = title;
    dialog.querySelector("[data-confirm-text]").textContent = text;
    const yes = dialog.querySelector("[data-confirm-yes]");
    yes.textContent = action;
    yes.className = `button ${isDangerous ? "button-danger" : "button-primary"}`;
    dialog.returnValue = "no";
    dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    });
  }

  // <button data-action="POST /jobs/ID/cancel"            method and address to call
  //         data-confirm="Cancel this job?" data-confirm-text="…" data-confirm-action="Cancel job" data-dangerous
  //         data-done="Cancelling." data-then="/ui/">    what to say and where to go afterwards; or `reload`,
  //                                                      or `job` for the page of the job that is the answer
  // A done action triggers the event `dashboard:done` on the button, with the answer as detail.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-action]");
    if (!button || button.disabled) return;
    const { action, confirm, confirmText, confirmAction, dangerous, done, then } = button.dataset;
    const wording = { title: confirm, text: confirmText, action: confirmAction ?? button.textContent.trim() };
    if (confirm && !(await confirmed({ ...wording, isDangerous: dangerous !== undefined }))) return;
    const [method, url] = action.split(" ");
    button.disabled = true;
    try {
      const answer = await request(method, url);
      if (done) toast(done);
      button.dispatchEvent(new CustomEvent("dashboard:done", { bubbles: true, detail: answer }));
      if (then === "reload") location.reload();
      else if (then === "job") location.assign(`/ui/jobs/${answer.id}`);
      else if (then) location.assign(then);
    } catch (error) {
      toast(error.message, "error");
    } finally {
      button.disabled = false;
    }
  });

  // --- Copying ------------------------------------------------------------------------------------------------
  // <button data-copy="#id-of-what-to-copy">Copy</button>
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(document.querySelector(button.dataset.copy).textContent);
      toast("Copied.");
    } catch {
      toast("The browser does not allow copying here. Select the text instead.", "error");
    }
  });

  // --- Theme --------------------------------------------------------------------------------------------------
  const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

  function showTheme() {
    const button = document.querySelector("[data-theme-switch]");
    if (!button) return;
    button.hidden = false;
    button.querySelector("[data-theme-name]").textContent = THEMES[document.documentElement.dataset.theme ?? "auto"];
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-switch]")) return;
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("theme", next);
    } catch {
      // Lasts as long as the page, then.
    }
    showTheme();
    document.dispatchEvent(new CustomEvent("dashboard:theme"));
  });

  window.dashboard = { request, toast, confirmed, showTimes, morph };
  showTimes();
  showTheme();
})();
