// What each instance did in the last quarter of an hour at most, and where it is heading.
// Drawn by plotly where its bundle is there.

const KEPT = 900;
const LEAST_S = 30;
const past = new Map();
const heading = new Map();
let span_s = 120;

export function setSpan(seconds) { span_s = seconds; }

/** What was before the page was opened, as /instances/NAME/history tells it; once for an instance. */
export function recall(name, history) {
  const seen = past.get(name) ?? [];
  const since_s = seen.length ? seen[0].unix_s : Infinity;
  const before = history.unix_s.map((unix_s, n) => earlier(history, unix_s, n)).filter((p) => p.unix_s < since_s);
  past.set(name, [...before, ...seen].slice(-KEPT));
}

function earlier(history, unix_s, n) {
  const ms = (value) => (value === null ? null : 1000 * value);
  return {
    unix_s, due_s: null,
    target: history.clock_target_mhz[n], actual: history.clock_actual_mhz[n],
    power: history.power_w[n], forecast: history.predicted_power_w[n],
    running: history.running[n], waiting: history.waiting[n], kv: history.kv_usage[n],
    step: ms(history.step_s[n]), expected: ms(history.predicted_step_s[n]), bound: ms(history.step_bound_s[n]),
  };
}

export function remember(frame) {
  for (const one of frame.status.instances) {
    const kept = past.get(one.name) ?? [];
    const course = (one.telemetry.fresh && frame.trajectories[one.name]) || null;
    kept.push(point(frame.unix_s, one, course));
    if (kept.length > KEPT) kept.shift();
    past.set(one.name, kept);
    heading.set(one.name, course);
  }
}

function point(unix_s, one, course) {
  const actual = one.gpus.map((gpu) => gpu.clock_actual_mhz).filter((mhz) => mhz !== null);
  const seen = one.telemetry.fresh ? one : {};
  const decided = one.shadow ? one.shadow.clock_mhz : one.clock_target_mhz;
  return {
    unix_s,
    target: decided ?? null,
    actual: actual.length ? Math.min(...actual) : null,
    power: one.power_w,
    forecast: one.regime === "active" ? one.last_decision?.chosen?.power_w ?? null : null,
    running: seen.running ?? null,
    waiting: seen.waiting ?? null,
    kv: seen.kv_usage ?? null,
    step: one.step.measured_s === null ? null : 1000 * one.step.measured_s,
    expected: one.step.predicted_s === null ? null : 1000 * one.step.predicted_s,
    bound: bound(one.step),
    ...ends(unix_s, course),
  };
}

/** The far end of the band: drawn at the time it was meant for, so that what came can be held against it. */
function ends(unix_s, course) {
  if (!course) return { due_s: null };
  const last = (key) => course[key][course[key].length - 1];
  return {
    due_s: unix_s + last("times_s"), batch_low: last("batch_low"), batch_high: last("batch_high"),
    kv_usage_low: last("kv_usage_low"), kv_usage_high: last("kv_usage_high"),
  };
}

function bound(step) {
  return step.predicted_s === null || step.upper_factor === null ? null : 1000 * step.predicted_s * step.upper_factor;
}

const PLOTS = [
  { id: "plot-clock", unit: "MHz", lines: [["actual", "clock"], ["target", "asked for", "dot"]], range: true },
  { id: "plot-power", unit: "W", lines: [["power", "measured"], ["forecast", "predicted", "dot"]] },
  { id: "plot-batch", unit: "requests", lines: [["running", "running"], ["waiting", "waiting"]], band: "batch" },
  { id: "plot-kv", unit: "", percent: true, lines: [["kv", "in use"]], band: "kv_usage" },
  { id: "plot-step", unit: "ms", lines: [["step", "measured"], ["expected", "predicted", "dot"], ["bound", "upper bound", "dash"]] },
];

export const hasPlots = () => Boolean(window.Plotly);

export function draw(one) {
  if (!hasPlots() || document.hidden) return;
  const kept = past.get(one.name) ?? [];
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(`--${name}`).trim();
  for (const plot of PLOTS) {
    const place = document.getElementById(plot.id);
    if (!place) continue;
    const traces = [...(plot.band ? bands(plot, kept, heading.get(one.name), colour) : []), ...lines(plot, kept, one, colour)];
    window.Plotly.react(place, traces, layout(plot, kept, one, colour), { displayModeBar: false, responsive: true });
  }
}

const date = (unix_s) => new Date(1000 * unix_s);

function lines(plot, kept, one, colour) {
  const seen = ([key], n) => n === 0 || kept.some((p) => p[key] !== null);
  return plot.lines.filter(seen).map(([key, name, dash], n) => ({
    x: kept.map((p) => date(p.unix_s)), y: kept.map((p) => p[key]),
    name: key === "target" && one.shadow ? "would ask for" : name,
    type: "scatter", mode: "lines", hovertemplate: plot.percent ? "%{y:.1%}" : "%{y:.4~g}",
    line: { dash: dash ?? "solid", width: 2, color: colour(`line${n + 1}`), shape: key === "target" ? "hv" : "linear" },
  }));
}

/** Two bands: what was projected for the moments that have passed, and where it goes from here. */
function bands(plot, kept, course, colour) {
  const key = plot.band;
  const told = kept.filter((p) => p.due_s !== null);
  const made = band(told.map((p) => date(p.due_s)), told.map((p) => p[`${key}_low`]), told.map((p) => p[`${key}_high`]), "projected before", colour("band"));
  if (!course) return made;
  const x = course.times_s.map((s) => date(course.observed_unix_s + s));
  const mean = { x, y: course[key], name: "projected", type: "scatter", mode: "lines", line: { width: 2, dash: "dot", color: colour("line3") }, hovertemplate: plot.percent ? "%{y:.1%}" : "%{y:.3~g}" };
  return [...made, ...band(x, course[`${key}_low`], course[`${key}_high`], "band", colour("band2"), false), mean];
}

function band(x, low, high, name, fillcolor, showlegend = true) {
  const edge = { x, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", name, legendgroup: name };
  return [{ ...edge, y: low, showlegend: false }, { ...edge, y: high, fill: "tonexty", fillcolor, showlegend }];
}

function layout(plot, kept, one, colour) {
  const now_s = kept.length ? kept[kept.length - 1].unix_s : Date.now() / 1000;
  const ahead_s = plot.band ? one.projection?.horizon_s ?? 5 : 0;
  const axis = { gridcolor: colour("grid"), zeroline: false, fixedrange: true };
  return {
    margin: { l: 46, r: 10, t: 4, b: 24 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "x unified",
    font: { color: colour("quiet"), size: 11, family: "system-ui, sans-serif" }, showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, hoverlabel: { bgcolor: colour("card"), font: { color: colour("text") } },
    xaxis: { ...axis, range: [date(Math.max(now_s - span_s, Math.min(kept[0]?.unix_s ?? now_s, now_s - LEAST_S))), date(now_s + ahead_s)], tickformat: "%H:%M:%S", nticks: 5 },
    yaxis: { ...axis, ...(plot.range && one.clocks ? { range: [0, 1.06 * one.clocks.supported_max_mhz] } : { rangemode: "tozero" }),
      title: { text: plot.unit, standoff: 4 }, tickformat: plot.percent ? ".2~%" : undefined },
    shapes: plot.range ? limits(one, colour) : [],
  };
}

/** Lines at the ends of the supported range; a shade over what may be asked for and the model knows. */
function limits(one, colour) {
  const clocks = one.clocks;
  if (!clocks) return [];
  const across = { xref: "paper", x0: 0, x1: 1, layer: "below" };
  const ends = [clocks.supported_min_mhz, clocks.supported_max_mhz].map((y) => ({ ...across, type: "line", y0: y, y1: y, line: { color: colour("quiet"), width: 1, dash: "dot" } }));
  if (!clocks.permitted_max_mhz) return ends;
  const [least, most] = one.model.ranges.clock_mhz ?? [0, Infinity];
  const [y0, y1] = [Math.max(clocks.permitted_min_mhz, least), Math.min(clocks.permitted_max_mhz, most)];
  return [{ ...across, type: "rect", y0, y1, fillcolor: colour("band"), line: { width: 0 } }, ...ends];
}
