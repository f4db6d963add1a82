// Charts of measured values with uPlot: what the pages of a job and of a comparison share.
//
// A MetricStore holds the rows of one job and fetches only what is new. A ChartView draws one chart from one or more
// stores, and keeps the table below it, which is legend, pointer readout and text alternative in one. Colors come
// from the style sheet, so a chart follows the theme; lines differ in their dashes too, not in color alone.
"use strict";

const dfkdCharts = (() => {
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [12, 4]];
  const MOST_ROWS = 6000;
  const RATE_BINS = 100;

  const byTime = (one, other) => one.at - other.at;

  /** Rows of one job, and where to go on reading. */
  class MetricStore {
    constructor(url, points, start) {
      this.url = url;
      this.points = points;
      this.start = start;
      this.reset();
    }

    reset() {
      this.rows = new Map(); // task → rows, oldest first
      this.count = 0;
      this.cursor = null;
      this.newest = this.start;
      this.lags = [];
    }

    /** Fetches what is new; resolves to whether there was anything. */
    async update(signal) {
      const query = new URLSearchParams({ points: this.points });
      if (this.cursor) query.set("after", this.cursor);
      const { data } = await dashboard.request("GET", `${this.url}?${query}`, { signal });
      if (this.count + data.length > MOST_ROWS && this.cursor) {
        // A page that was open for long: once more from the start, thinned out anew.
        const lags = this.lags;
        this.reset();
        this.lags = lags;
        return this.update(signal);
      }
      for (const row of data) {
        if (!this.rows.has(row.task)) this.rows.set(row.task, []);
        this.rows.get(row.task).push(row);
        this.cursor = row.id;
        this.newest = row.at;
      }
      this.count += data.length;
      return data.length > 0;
    }

    /** Notes a lag that was seen while the page was open, for jobs whose rows do not tell. */
    noteLag(at, lag) {
      this.lags.push({ at, lag });
      if (this.lags.length > MOST_ROWS) this.lags = this.lags.filter((_, place) => place % 2);
    }

    tasks(role) {
      return [...this.rows].filter(([task]) => task.startsWith(`${role}:`)).map(([, rows]) => rows);
    }

    /** Points {x, y} of one series of a chart. */
    pointsOf(chart, series, axis) {
      if (chart.kind === "rate") return this.rate(series.role, chart.units_per_step, axis);
      if (chart.kind === "lag") return this.lag(chart.units_per_step);
      const found = [];
      for (const rows of this.tasks(series.role))
        for (const row of rows)
          if (series.name in row.values)
            found.push({ x: axis === "steps" ? row.step : row.at - this.start, y: row.values[series.name] });
      return found.sort((one, other) => one.x - other.x);
    }

    /** Units per second over equal stretches of time, all tasks of a role together. */
    rate(role, unitsPerStep, axis) {
      const stretches = [];
      for (const rows of this.tasks(role))
        for (let place = 1; place < rows.length; place++) {
          const [before, after] = [rows[place - 1], rows[place]];
          // Fewer steps than before: a successor began again from a checkpoint.
          if (after.step > before.step && after.at > before.at)
            stretches.push({ from: before.at, to: after.at, units: (after.step - before.step) * unitsPerStep });
        }
      if (!stretches.length) return [];
      const from = Math.min(...stretches.map((each) => each.from));
      const to = Math.max(...stretches.map((each) => each.to));
      const count = Math.max(1, Math.min(RATE_BINS, Math.floor(stretches.length / 2), Math.floor(to - from)));
      const width = (to - from) / count;
      const bins = new Array(count).fill(0);
      for (const each of stretches) {
        const first = Math.floor((each.from - from) / width);
        const last = Math.min(count - 1, Math.floor((each.to - from) / width));
        for (let bin = first; bin <= last; bin++) {
          const shared = Math.min(each.to, from + (bin + 1) * width) - Math.max(each.from, from + bin * width);
          bins[bin] += (each.units * Math.max(shared, 0)) / (each.to - each.from);
        }
      }
      let sum = 0;
      return bins.map((units, bin) => {
        sum += units / unitsPerStep;
        return { x: axis === "steps" ? sum : from + (bin + 0.5) * width - this.start, y: units / width };
      });
    }

    /** Shards announced minus shards taken. */
    lag(shardsPerStep) {
      const announcing = this.tasks("synthesis");
      const announced = (at) =>
        announcing.reduce((sum, rows) => sum + Math.ceil(stepAt(rows, at) * shardsPerStep - 1e-6), 0);
      const told = this.tasks("distillation").flat().filter((row) => "shards_consumed" in row.values);
      const found = told.map((row) => ({
        x: row.at - this.start,
        y: Math.max(0, announced(row.at) - row.values.shards_consumed),
      }));
      if (found.length) return found.sort((one, other) => one.x - other.x);
      return [...this.lags].sort(byTime).map(({ at, lag }) => ({ x: at - this.start, y: lag }));
    }
  }

  /** The step that a task had reached, between rows as if it had moved evenly. */
  function stepAt(rows, at) {
    let [low, high] = [0, rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle].at <= at) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return 0;
    const before = rows[low - 1];
    if (low === rows.length) return before.step;
    const after = rows[low];
    return before.step + Math.floor(((after.step - before.step) * (at - before.at)) / (after.at - before.at));
  }

  // -- numbers ---------------------------------------------------------------------------------------

  function formatNumber(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
    return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 6 : 4 });
  }

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

  /** For an axis, where there is little room. */
  const formatTick = (value) => (Math.abs(value) >= 1e4 ? compact.format(value) : formatNumber(value));

  function formatValue(chart, value) {
    if (value === null || value === undefined) return "–";
    if (chart.format === "percent") return `${(100 * value).toFixed(1)} %`;
    return chart.unit ? `${formatNumber(value)} ${chart.unit}` : formatNumber(value);
  }

  function formatSeconds(seconds) {
    const round = Math.round(seconds * 10) / 10;
    if (round < 60) return `${round} s`;
    const [hours, minutes, rest] = [Math.floor(round / 3600), Math.floor((round % 3600) / 60), Math.round(round % 60)];
    if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
    return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
  }

  const formatX = (axis, value) => (axis === "steps" ? `step ${formatNumber(value)}` : formatSeconds(value));

  // -- drawing ---------------------------------------------------------------------------------------

  const probe = document.createElement("span");

  /** A color of the design, in the theme that shows. The variable itself holds both themes. */
  function css(name) {
    if (!probe.isConnected) document.body.append(probe);
    probe.hidden = true;
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  }

  /** The table of series that uPlot wants: one x for all, and gaps as undefined. */
  function align(all) {
    const tables = all.map((points) => [points.map((point) => point.x), points.map((point) => point.y)]);
    for (const [xs, ys] of tables)
      for (let place = 1; place < xs.length; place++)
        // uPlot.join wants every x once; the newest of several counts.
        if (xs[place] === xs[place - 1]) {
          xs[place - 1] = null;
          ys[place - 1] = null;
        }
    const clean = tables.map(([xs, ys]) => [xs.filter((x) => x !== null), ys.filter((_, place) => xs[place] !== null)]);
    return uPlot.join(clean);
  }

  /** One chart: the drawing and the table below it. */
  class ChartView {
    /**
     * @param figure  element with .chart-drawing, .chart-legend and .chart-empty
     * @param chart   what it shows (synth_service/api/dashboard/charts.py)
     * @param lines   [{store, series, label, color}], each a line
     * @param axis    "seconds" or "steps"
     */
    constructor(figure, chart, lines, axis = "seconds") {
      Object.assign(this, { figure, chart, lines, axis });
      this.place = figure.querySelector(".chart-drawing");
      this.legend = figure.querySelector(".chart-legend");
      this.moment = figure.querySelector(".chart-moment");
      this.empty = figure.querySelector(".chart-empty");
      this.hidden = new Set();
      this.buildLegend();
      new ResizeObserver(() => this.resize()).observe(this.place);
    }

    buildLegend() {
      this.cells = [];
      const body = this.legend.tBodies[0];
      body.replaceChildren();
      this.lines.forEach((line, place) => {
        const row = body.insertRow();
        const head = document.createElement("th");
        head.scope = "row";
        const button = document.createElement("button");
        button.type = "button";
        button.className = "legend-toggle";
        button.setAttribute("aria-pressed", "true");
        button.title = "Show or hide this line";
        button.append(swatch(line.color, place), line.label);
        button.addEventListener("click", () => this.toggle(place, button));
        head.append(button);
        const cell = document.createElement("td");
        row.append(head, cell);
        this.cells.push(cell);
      });
    }

    toggle(place, button) {
      const isShown = this.hidden.has(place);
      if (isShown) this.hidden.delete(place);
      else this.hidden.add(place);
      button.setAttribute("aria-pressed", String(isShown));
      this.plot?.setSeries(place + 1, { show: isShown });
    }

    setAxis(axis) {
      this.axis = axis;
      this.redraw();
    }

    /** Draws anew, for another theme or axis. */
    redraw() {
      this.plot?.destroy();
      this.plot = null;
      this.update();
    }

    update() {
      const all = this.lines.map((line) => {
        const chart = line.unitsPerStep ? { ...this.chart, units_per_step: line.unitsPerStep } : this.chart;
        return line.store.pointsOf(chart, line.series, this.axis);
      });
      const isEmpty = all.every((points) => !points.length);
      this.empty.hidden = !isEmpty;
      this.legend.hidden = isEmpty;
      this.place.hidden = isEmpty;
      if (isEmpty) return;
      this.lastX = Math.max(...all.map((points) => points.at(-1)?.x ?? 0));
      this.newest = all.map((points) => points.at(-1)?.y);
      this.isSparse = all.map((points) => points.length < 40);
      const data = align(all);
      if (this.plot) this.plot.setData(data);
      else this.plot = new uPlot(this.options(), data, this.place);
      if (!this.plot.cursor.idx) this.showNewest();
    }

    options() {
      const [ink, grid] = [css("--color-muted"), css("--color-border")];
      const font = `12px ${getComputedStyle(document.body).fontFamily}`;
      const axisStyle = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
      const isPercent = this.chart.format === "percent";
      return {
        width: Math.max(this.place.clientWidth, 120),
        height: 200,
        legend: { show: false },
        scales: {
          x: { time: false, range: (_, least, greatest) => this.rangeOfX(least, greatest) },
          y: { range: (_, least, greatest) => this.rangeOf(least, greatest) },
        },
        cursor: { y: false, drag: { x: true, y: false }, sync: { key: "dfkd" }, points: { size: 7 } },
        axes: [
          {
            ...axisStyle,
            space: 70,
            size: 34,
            incrs: this.axis === "seconds" ? SECOND_STEPS : undefined,
            values: (_, values) =>
              values.map((value) => (this.axis === "steps" ? formatTick(value) : formatSeconds(value))),
          },
          {
            ...axisStyle,
            size: 58,
            values: (_, values) => values.map((value) => (isPercent ? `${Math.round(100 * value)} %` : formatTick(value))),
          },
        ],
        series: [
          {},
          ...this.lines.map((line, place) => ({
            label: line.label,
            stroke: css(`--color-series-${line.color + 1}`),
            dash: DASHES[place % DASHES.length],
            width: 1.75,
            spanGaps: true,
            show: !this.hidden.has(place),
            points: { show: () => this.isSparse[place], size: 5 },
          })),
        ],
        hooks: { setCursor: [(plot) => this.showCursor(plot)] },
      };
    }

    /** All charts of a page share the axis of seconds, so that one lies above the other. */
    rangeOfX(least, greatest) {
      if (this.axis === "steps") return least === greatest ? [least - 1, least + 1] : [least, greatest];
      return [0, Math.max(...this.lines.map((line) => line.store.newest - line.store.start), this.lastX, 1)];
    }

    /** Speeds, shards and shares start at zero: the bottom of such a chart means something. */
    rangeOf(least, greatest) {
      if (least === null || greatest === null) return [0, 1];
      const isFromZero = this.chart.kind !== "values";
      if (this.chart.format === "percent") return uPlot.rangeNum(least, Math.min(greatest, 1), 0.1, true);
      if (isFromZero) return uPlot.rangeNum(0, greatest || 1, 0.1, true);
      return uPlot.rangeNum(least, greatest, 0.1, true);
    }

    showCursor(plot) {
      const index = plot.cursor.idx;
      if (index === null || index === undefined || plot.cursor.left < 0) {
        this.showNewest();
        return;
      }
      this.moment.textContent = `At ${formatX(this.axis, plot.data[0][index])}`;
      this.cells.forEach((cell, place) => {
        cell.textContent = formatValue(this.chart, nearest(plot.data[place + 1], index));
      });
    }

    showNewest() {
      this.moment.textContent = "Newest";
      this.cells.forEach((cell, place) => {
        cell.textContent = formatValue(this.chart, this.newest[place]);
      });
    }

    resize() {
      const width = this.place.clientWidth;
      if (this.plot && width && Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: 200 });
    }
  }

  const SECOND_STEPS = [
    ...[0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30],
    ...[1, 2, 5, 10, 15, 30].map((minutes) => 60 * minutes),
    ...[1, 2, 3, 6, 12, 24, 48, 120, 240, 480].map((hours) => 3600 * hours),
  ];

  /** The value at an index, or the last one before it: series of other steps have gaps there. */
  function nearest(values, index) {
    for (let place = index; place >= 0; place--) if (values[place] !== null && values[place] !== undefined) return values[place];
    return null;
  }

  function swatch(color, place) {
    const namespace = "http://www.w3.org/2000/svg";
    const drawing = document.createElementNS(namespace, "svg");
    const attributes = { width: 22, height: 8, "aria-hidden": "true", class: `swatch swatch-${color + 1}` };
    for (const [name, value] of Object.entries(attributes)) drawing.setAttribute(name, value);
    const line = document.createElementNS(namespace, "line");
    const ends = { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-dasharray": DASHES[place % DASHES.length].join(" ") };
    for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
    drawing.append(line);
    return drawing;
  }

  /** Calls back when the theme changes: by the system, or by the page's own switch. */
  function onThemeChange(callback) {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback);
    new MutationObserver(callback).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  return { MetricStore, ChartView, onThemeChange, formatSeconds, formatNumber };
})();
