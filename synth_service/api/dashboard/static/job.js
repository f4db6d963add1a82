// The page of a job: keeps its parts fresh, follows the events, and sends the actions.
//
// Everything is driven by one clock and one stream. The clock ticks every few seconds while the job runs, slower when
// nothing changes, and not at all while the page is hidden. The stream is the job's server-sent events, read with
// fetch instead of EventSource, which would miss every type of event that it was not told of beforehand. It is taken
// up again after the last event that was seen, so nothing is lost or shown twice, however often it is cut.
"use strict";

(() => {
  const page = document.getElementById("job-page");
  if (!page) return;
  const job = page.dataset.job;
  const TICK = 3000;
  const SLOWEST_TICK = 15000;
  const FINAL_TICK = 30000;
  const OUTPUTS_EVERY = 5000;
  const RETRY = 1000;
  const LONGEST_RETRY = 10000;
  const byId = (id) => document.getElementById(id);
  const tell = (name) => document.body.dispatchEvent(new CustomEvent(name));

  // -- state -----------------------------------------------------------------------------------------

  const facts = () => byId("job-facts").dataset;
  const isFinal = () => facts().final === "true";

  // -- charts ----------------------------------------------------------------------------------------

  const place = byId("charts");
  const store = new dfkdCharts.MetricStore(place.dataset.metrics, place.dataset.points, Number(place.dataset.start));
  const charts = JSON.parse(place.dataset.charts).map((chart) => {
    const lines = chart.series.map((series) => ({ store, series, label: series.label, color: series.color }));
    return new dfkdCharts.ChartView(byId(`chart-${chart.id}`), chart, lines);
  });
  dfkdCharts.onThemeChange(() => charts.forEach((chart) => chart.redraw()));

  /** Resolves to whether there were new values. */
  async function updateCharts(signal) {
    const isFirst = !store.cursor;
    noteLag();
    const hasNew = await store.update(signal);
    byId("charts").hidden = store.count === 0;
    byId("charts-empty").hidden = store.count > 0;
    byId("charts-empty").textContent = isFinal() ? "Nothing was measured." : "No values yet. They appear as workers measure.";
    byId("charts-state").textContent = store.count && !isFinal() ? "live" : "";
    if (hasNew || isFirst) charts.forEach((chart) => chart.update());
    return hasNew;
  }

  function noteLag() {
    const { lag } = facts();
    if (lag !== undefined && lag !== "" && !isFinal()) store.noteLag(Date.now() / 1000, Number(lag));
  }

  // -- the clock -------------------------------------------------------------------------------------

  let wait = TICK;
  let timer = null;
  let due = Infinity; // when the timer ticks
  let request = null;
  let isTicking = false;

  /** Sets the next tick. One that is due already may come earlier, and is never postponed: events come every moment. */
  function schedule() {
    if (document.hidden || isTicking) return;
    const next = performance.now() + (isFinal() ? FINAL_TICK : wait);
    if (next >= due) return;
    clearTimeout(timer);
    due = next;
    timer = setTimeout(tick, next - performance.now());
  }

  function unschedule() {
    clearTimeout(timer);
    due = Infinity;
  }

  async function tick() {
    unschedule();
    if (isTicking) return;
    isTicking = true;
    tell("job-status");
    if (!isFinal() || !store.cursor) {
      request = new AbortController();
      try {
        const hasNew = await updateCharts(request.signal);
        wait = hasNew ? TICK : Math.min(wait * 1.5, SLOWEST_TICK);
      } catch {
        wait = SLOWEST_TICK; // app.js tells that the connection is lost
      }
    }
    isTicking = false;
    schedule();
  }

  // -- fragments -------------------------------------------------------------------------------------

  // A swap throws away which tables are open, and which bar has the focus is known by its id.
  const open = new Set();
  document.addEventListener(
    "toggle",
    (event) => {
      if (!event.target.matches?.("details[id]") || !event.target.isConnected) return;
      if (event.target.open) open.add(event.target.id);
      else open.delete(event.target.id);
    },
    true,
  );

  let state = facts().state;
  let shown = ""; // of the timeline: the times of the bar that was last looked at
  document.body.addEventListener("htmx:afterSwap", () => {
    open.forEach((id) => byId(id)?.setAttribute("open", ""));
    if (shown) byId("timeline-readout").textContent = shown;
    startLog();
    if (facts().state === state) return;
    state = facts().state;
    wait = TICK;
    if (isFinal()) finish();
    else listen();
    schedule();
  });
  document.body.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status !== 404 || event.detail.elt.id !== "job-live") return;
    stop();
    dashboard.toast("This job has been deleted.", "error");
  });
  document.body.addEventListener("dashboard:done", ({ target }) => {
    if (target.id === "action-delete") stop();
    else tell("job-status");
  });

  // -- events ----------------------------------------------------------------------------------------

  const log = byId("log");
  const list = byId("log-list");
  const follow = byId("log-follow");
  let after = null;
  let first = null;
  let isFollowing = true;
  let unseen = 0;
  let stream = null;
  let retry = RETRY;

  const say = (text) => (byId("log-state").textContent = text);

  /** Begins with the newest events, once the server has come to these in a long story. */
  let isStarted = false;
  function startLog() {
    if (isStarted) return;
    if (facts().behind === "true") {
      tell("job-status");
      return;
    }
    isStarted = true;
    after = facts().logStartsAfter || null;
    byId("log-earlier").hidden = !after;
    if (isFinal()) readAll();
    else listen();
  }

  async function listen() {
    if (!isStarted) return;
    if (stream || document.hidden) return;
    const mine = (stream = new AbortController());
    try {
      const query = after ? `?after=${after}` : "";
      const headers = { Accept: "text/event-stream" };
      if (after) headers["Last-Event-ID"] = after;
      const response = await fetch(`/jobs/${job}/events${query}`, { headers, signal: mine.signal, cache: "no-store" });
      if (response.status === 404) return;
      if (!response.ok) throw new Error(`the server answers ${response.status}`);
      say("");
      retry = RETRY;
      await readEvents(response.body.getReader());
    } catch (error) {
      if (error.name === "AbortError") return;
      say("Connection lost. Trying again …");
    } finally {
      if (stream === mine) stream = null;
    }
    // The stream ends with the job. It may have been cut all the same, or the job may have been retried since.
    tell("job-status");
    if (!isFinal()) {
      setTimeout(listen, retry);
      retry = Math.min(2 * retry, LONGEST_RETRY);
    }
  }

  async function readEvents(reader) {
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += decoder.decode(value, { stream: true });
      const blocks = text.split("\n\n");
      text = blocks.pop();
      const events = blocks
        .map((block) => block.split("\n").find((line) => line.startsWith("data: ")))
        .filter(Boolean)
        .map((line) => JSON.parse(line.slice(6)));
      if (events.length) take(events);
    }
  }

  /** Of a job that has ended there is a list, and no stream to keep open. */
  async function readAll() {
    try {
      for (;;) {
        const query = new URLSearchParams({ limit: 1000, ...(after ? { after } : {}) });
        const { data, has_more: hasMore } = await dashboard.request("GET", `/jobs/${job}/events?${query}`);
        if (data.length) take(data);
        if (!hasMore) break;
      }
      say("");
    } catch {
      say("The events could not be read. Trying again …");
      setTimeout(readAll, LONGEST_RETRY);
    }
  }

  const CHANGES_OUTPUTS = new Set(["shard_sealed", "shard_damaged"]);
  const CHANGES_NOTHING = new Set(["student_published", "evaluated", ...CHANGES_OUTPUTS]);

  function take(events) {
    const items = document.createDocumentFragment();
    for (const event of events) items.append(entry(event));
    first ??= events[0].id;
    after = events.at(-1).id;
    byId("log-empty").hidden = true;
    list.append(items);
    if (isFollowing) log.scrollTop = log.scrollHeight;
    else {
      unseen += events.length;
      showFollow();
    }
    wait = TICK;
    if (events.some((event) => CHANGES_OUTPUTS.has(event.type))) updateOutputs();
    if (events.some((event) => !CHANGES_NOTHING.has(event.type))) tell("job-status");
    schedule();
  }

  function entry(event) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    const moment = new Date(1000 * event.at);
    time.dateTime = moment.toISOString();
    time.textContent = moment.toLocaleTimeString();
    time.title = `${moment.toLocaleString()} (${moment.toISOString()})`;
    const type = document.createElement("span");
    type.className = `log-type log-${kind(event.type)}`;
    type.textContent = event.type.replaceAll("_", " ");
    const text = document.createElement("span");
    text.className = "log-text";
    text.textContent = [event.task?.replace(/:0$/, "").replace(":", " "), details(event)].filter(Boolean).join(" · ");
    item.append(time, type, text);
    return item;
  }

  function kind(type) {
    if (/failed|lost|damaged|full/.test(type)) return "bad";
    if (/succeeded/.test(type)) return "good";
    if (/paused|released|cancel|retried/.test(type)) return "warning";
    return "plain";
  }

  function details({ type, data }) {
    if (type === "shard_sealed") return `${data.images} images, ${formatBytes(data.bytes)}, ${data.name}`;
    if (type === "evaluated") {
      const percent = (value) => `${(100 * value).toFixed(1)} %`;
      const measured = Object.entries(data).filter(([name]) => name !== "step");
      const named = measured.map(([name, value]) => `${metricName(name)} ${percent(value)}`);
      return `step ${data.step}: ${named.join(", ")}`;
    }
    if (type.startsWith("attempt_") && data.attempt) return [`attempt ${data.attempt}`, data.worker].join(" · ");
    const parts = Object.entries(data).filter(([, value]) => value !== null && value !== "");
    return parts.map(([name, value]) => `${name.replaceAll("_", " ")}: ${plain(value)}`).join(", ");
  }

  // The events of every task tell its own metrics: student_top1, student_miou, agreement, …
  const METRIC_NAMES = { student_top1: "top-1", student_miou: "mIoU" };
  const metricName = (name) => METRIC_NAMES[name] || name.replace(/^student_/, "").replaceAll("_", " ");

  const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

  function formatBytes(bytes) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let power = 0;
    while (bytes >= 999.5 && power < units.length - 1) {
      bytes /= 1000;
      power += 1;
    }
    return `${power ? bytes.toPrecision(3) : bytes} ${units[power]}`;
  }

  function showFollow() {
    follow.hidden = isFollowing;
    follow.textContent = unseen ? `Follow (${unseen} new)` : "Follow new events";
  }

  log.addEventListener("scroll", () => {
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 12;
    if (isAtEnd === isFollowing) return;
    isFollowing = isAtEnd;
    if (isAtEnd) unseen = 0;
    say(isAtEnd || isFinal() ? "" : "Paused while you read");
    if (isFinal()) follow.hidden = true;
    else showFollow();
  });
  follow.addEventListener("click", () => {
    isFollowing = true;
    unseen = 0;
    log.scrollTop = log.scrollHeight;
    say("");
    showFollow();
    log.focus();
  });

  byId("log-earlier-button").addEventListener("click", async ({ target }) => {
    target.disabled = true;
    try {
      const earlier = document.createDocumentFragment();
      for (let last = null, isThere = false; !isThere; ) {
        const query = new URLSearchParams({ limit: 1000, ...(last ? { after: last } : {}) });
        const { data, has_more: hasMore } = await dashboard.request("GET", `/jobs/${job}/events?${query}`);
        const end = data.findIndex((event) => event.id === first);
        earlier.append(...data.slice(0, end < 0 ? data.length : end).map(entry));
        isThere = end >= 0 || !hasMore;
        last = data.at(-1)?.id;
      }
      const height = log.scrollHeight;
      list.prepend(earlier);
      log.scrollTop += log.scrollHeight - height;
      byId("log-earlier").hidden = true;
      log.focus();
    } catch {
      target.disabled = false;
      say("The earlier events could not be read. Try again.");
    }
  });

  // -- pictures and other outputs --------------------------------------------------------------------

  const pictures = byId("pictures");
  let outputsDue = 0;
  let outputsTimer = null;
  let pictureUrl = null;
  let pictureTag = null;

  /** Asks for pictures, histogram and shards, at most every few seconds. */
  function updateOutputs() {
    if (outputsTimer || document.hidden) return;
    outputsTimer = setTimeout(
      () => {
        outputsTimer = null;
        outputsDue = Date.now() + OUTPUTS_EVERY;
        tell("job-shards");
        updatePicture();
      },
      Math.max(0, outputsDue - Date.now()),
    );
  }

  async function updatePicture() {
    if (!pictures) return;
    const field = byId("picture-class");
    const chosen = field.value;
    if (field.type === "number" && !field.checkValidity()) return field.reportValidity();
    let response;
    try {
      response = await fetch(pictures.dataset.picture + (chosen === "" ? "" : `?class=${encodeURIComponent(chosen)}`));
    } catch {
      return;
    }
    if (chosen !== field.value) return;
    const isThere = response.status === 200;
    const tag = `${chosen} ${response.headers.get("etag")}`;
    if (isThere && tag === pictureTag) return;
    pictureTag = isThere ? tag : null;
    const what = chosen === "" ? "all classes" : `class ${chosen}`;
    byId("picture-open").hidden = !isThere;
    byId("picture-empty").hidden = isThere;
    if (!isThere) {
      const none = chosen === "" ? "No images" : `No images of ${what}`;
      byId("picture-empty").textContent = isFinal() ? `${none}.` : `${none} yet. They appear as shards are sealed.`;
      byId("picture-caption").textContent = "";
      return;
    }
    if (pictureUrl) URL.revokeObjectURL(pictureUrl);
    pictureUrl = URL.createObjectURL(await response.blob());
    const order = response.headers.get("x-picture") === "grid" ? "one class a row, from early to late" : "the newest first";
    for (const id of ["picture", "picture-large"]) {
      byId(id).src = pictureUrl;
      byId(id).alt = `Synthetic images of ${what}, ${order}`;
    }
    byId("picture-caption").textContent = `${what[0].toUpperCase()}${what.slice(1)}, ${order}. Press the picture to see it larger.`;
  }

  if (pictures) {
    byId("picture-class").addEventListener("change", updatePicture);
    byId("picture-open").addEventListener("click", () => byId("dialog-picture").showModal());
  }

  // -- timeline --------------------------------------------------------------------------------------

  const live = byId("job-live");

  function showSpan(span) {
    const { start, end, title, detail } = span.dataset;
    const [from, to] = [start, end].map((seconds) => new Date(1000 * seconds).toLocaleTimeString());
    const length = dfkdCharts.formatSeconds(end - start);
    shown = [`${title}: ${from} – ${to} (${length})`, detail].filter(Boolean).join(", ");
    byId("timeline-readout").textContent = shown;
  }

  for (const name of ["pointerover", "focusin"])
    live.addEventListener(name, ({ target }) => {
      const span = target.closest(".lane .span");
      if (span) showSpan(span);
    });
  // One stop for each lane; the arrow keys lead along it.
  live.addEventListener("keydown", (event) => {
    const span = event.target.closest(".lane .span");
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (!span || !(event.key in steps)) return;
    event.preventDefault();
    const spans = [...span.parentElement.querySelectorAll(".span")];
    const goal = Math.min(Math.max(spans.indexOf(span) + steps[event.key], 0), spans.length - 1);
    span.tabIndex = -1;
    spans[goal].tabIndex = 0;
    spans[goal].focus();
  });

  // -- tabs, copying ---------------------------------------------------------------------------------

  const tabs = [...document.querySelectorAll("[role=tab]")];
  function choose(tab) {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      byId(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
  }
  tabs.forEach((tab, number) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(number + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });

  // Hashes are shown short and copied whole; whatever is shown whole is copied by app.js.
  document.addEventListener("click", async ({ target }) => {
    const button = target.closest("[data-copy-text]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copyText);
      dashboard.toast("Copied.");
    } catch {
      dashboard.toast(`The browser does not allow copying here: ${button.dataset.copyText}`, "error");
    }
  });

  // -- coming and going ------------------------------------------------------------------------------

  function finish() {
    if (isStarted && !stream) readAll();
    updateOutputs();
    updateCharts().catch(() => {});
  }

  function stop() {
    unschedule();
    request?.abort();
    stream?.abort();
    stream = null;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else {
      wait = TICK;
      tick();
      if (!isFinal()) listen();
      updateOutputs();
    }
  });
  addEventListener("pagehide", stop);

  updateCharts().catch(() => {});
  updatePicture();
  startLog();
  schedule();
})();
