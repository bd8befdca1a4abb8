// The last quarter of an hour of each instance, kept by this page, drawn by plotly where its bundle is there.

const KEPT = 900;
const past = new Map();

export function remember(frame) {
  for (const one of frame.status.instances) {
    const kept = past.get(one.name) ?? [];
    kept.push(point(frame.unix_s, one));
    if (kept.length > KEPT) kept.shift();
    past.set(one.name, kept);
  }
}

function point(unix_s, one) {
  const actual = one.gpus.map((gpu) => gpu.clock_actual_mhz).filter((mhz) => mhz !== null);
  return {
    at: new Date(1000 * unix_s),
    target: one.clock_target_mhz,
    actual: actual.length ? Math.min(...actual) : null,
    power: one.power_w,
    running: one.running,
    waiting: one.waiting,
    projected: one.projection?.batch ?? null,
    kv: one.kv_usage,
    kvAhead: one.projection?.kv_usage ?? null,
    step: one.step.measured_s === null ? null : 1000 * one.step.measured_s,
    expected: one.step.predicted_s === null ? null : 1000 * one.step.predicted_s,
    bound: bound(one.step),
  };
}

function bound(step) {
  return step.predicted_s === null || step.upper_factor === null ? null : 1000 * step.predicted_s * step.upper_factor;
}

const PLOTS = [
  { id: "plot-clock", unit: "MHz", lines: [["actual", "clock"], ["target", "asked for", "dash"]] },
  { id: "plot-power", unit: "W", lines: [["power", "power"]], zero: true },
  { id: "plot-batch", unit: "requests", lines: [["running", "running"], ["waiting", "waiting"], ["projected", "projected", "dot"]], zero: true },
  { id: "plot-kv", unit: "of the KV cache", percent: true, lines: [["kv", "in use"], ["kvAhead", "projected", "dot"]], zero: true },
  { id: "plot-step", unit: "ms a step", lines: [["step", "measured"], ["expected", "predicted", "dash"], ["bound", "90 % bound", "dot"]], zero: true },
];

export function draw(name) {
  if (!window.Plotly) return;
  const kept = past.get(name) ?? [];
  for (const plot of PLOTS) {
    const place = document.getElementById(plot.id);
    if (place) window.Plotly.react(place, traces(plot, kept), layout(plot), { displayModeBar: false, responsive: true });
  }
}

function traces(plot, kept) {
  return plot.lines.map(([key, name, dash]) => ({
    x: kept.map((p) => p.at), y: kept.map((p) => p[key]), name, type: "scatter", mode: "lines",
    line: { dash: dash ?? "solid", width: 2, shape: key === "target" ? "hv" : "linear" },
  }));
}

function layout(plot) {
  const css = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => css.getPropertyValue(name).trim());
  return {
    margin: { l: 48, r: 8, t: 6, b: 26 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: text, size: 11 }, showlegend: plot.lines.length > 1, legend: { orientation: "h", y: 1.15 },
    xaxis: { gridcolor: line, zeroline: false }, uirevision: "kept",
    yaxis: { gridcolor: line, zeroline: false, rangemode: plot.zero ? "tozero" : "normal",
      title: { text: plot.unit }, tickformat: plot.percent ? ".0%" : undefined },
  };
}
