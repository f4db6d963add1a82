// The comparison: the charts of several jobs over one axis, seconds since the start or steps.
"use strict";

(() => {
  const place = document.getElementById("compare-charts");
  if (!place) return;
  const TICK = 5000;
  const state = document.getElementById("charts-state");
  const described = JSON.parse(place.dataset.stores);
  const stores = described.map(({ url, start }) => new dfkdCharts.MetricStore(url, place.dataset.points, start));
  const charts = JSON.parse(place.dataset.charts).map((chart) => {
    const lines = Object.entries(chart.units_of_jobs).map(([job, units]) => ({
      store: stores[job],
      series: chart.series[0],
      label: described[job].label,
      color: Number(job),
      unitsPerStep: units,
    }));
    return new dfkdCharts.ChartView(document.getElementById(`chart-${chart.id}`), chart, lines);
  });
  dfkdCharts.onThemeChange(() => charts.forEach((chart) => chart.redraw()));
  document.querySelectorAll("input[name=axis]").forEach((input) =>
    input.addEventListener("change", () => charts.forEach((chart) => chart.setAxis(input.value))),
  );

  let timer = null;
  async function tick() {
    clearTimeout(timer);
    // What has ended is read once.
    const due = stores.filter((store, number) => !(described[number].final && store.isRead));
    try {
      await Promise.all(
        due.map(async (store) => {
          await store.update();
          store.isRead = true;
        }),
      );
      state.textContent = stores.some((store) => store.count) ? "" : "None of these jobs has measured anything yet.";
      if (due.length) charts.forEach((chart) => chart.update());
    } catch {
      state.textContent = "The service does not answer. The page continues by itself once it does.";
    }
    const isDone = described.every((each, number) => each.final && stores[number].isRead);
    if (!isDone && !document.hidden) timer = setTimeout(tick, TICK);
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : tick()));
  tick();
})();
