// What is shown in words and numbers. Text only ever through textContent: nothing of a server's is markup here.

export function el(tag, text = "", cls = "", ...children) {
  const node = document.createElement(tag);
  if (text !== "") node.textContent = text;
  if (cls) node.className = cls;
  node.append(...children);
  return node;
}

export const watts = (w) => (w === null || w === undefined ? "–" : `${Math.round(w)} W`);
export const percent = (x, digits = 1) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(digits)} %`);
export function energy(j) {
  if (j >= 3.6e6) return `${(j / 3.6e6).toFixed(2)} kWh`;
  return j >= 3600 ? `${(j / 3600).toFixed(1)} Wh` : `${Math.round(j)} J`;
}
export function seconds(s) {
  if (s === null || s === undefined) return "–";
  return s < 1 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`;
}
const REGIMES = { active: "good", shadow: "warn", failsafe: "bad", override: "warn" };
export const regimeClass = (regime) => `badge ${REGIMES[regime] ?? ""}`;

export function tiles(status) {
  const all = status.instances;
  const sum = (key) => all.reduce((total, one) => total + (one[key] ?? 0), 0);
  const saved = all.reduce((t, one) => t + (one.savings?.saved_j ?? 0), 0);
  const base = all.reduce((t, one) => t + (one.savings?.baseline_j ?? 0), 0);
  const kept = all.flatMap((one) => Object.values(one.attainment)).filter((a) => a.ratio !== null);
  const worst = kept.length ? kept.reduce((least, a) => (a.ratio - a.quantile < least.ratio - least.quantile ? a : least)) : null;
  const wide = [
    tile("power now", watts(sum("power_w"))),
    tile("energy since the start", energy(sum("energy_j"))),
    tile("saved, estimate against driver default", base > 0 ? `${percent(saved / base)}` : "–", base > 0 ? energy(saved) : ""),
    tile("least kept promise", worst ? percent(worst.ratio, 2) : "–", worst ? `of ${percent(worst.quantile, 1)} promised` : "", worst ? (worst.ratio >= worst.quantile ? "good" : "bad") : ""),
    tile("guard", status.guard.state, status.guard.lease_left_s === null ? "" : `lease ${status.guard.lease_left_s.toFixed(1)} s`, status.guard.state === "disconnected" ? "bad" : ""),
    tile("decision, p99", seconds(status.decision_duration.p99_s)),
  ];
  return wide;
}

function tile(name, value, more = "", cls = "") {
  return el("div", "", "tile", el("h3", name), el("b", value, cls), el("span", more, "quiet"));
}

export function alarms(status) {
  const found = Object.entries(status.guard.alarms).map(([gpu, why]) => `${gpu}: ${why}`);
  if (status.guard.state === "disconnected") found.push(`guard: not connected${status.guard.last_error ? `, ${status.guard.last_error}` : ""}`);
  if (status.settings.last_error) found.push(`settings: ${status.settings.last_error}`);
  if (status.config.last && !status.config.last.ok) found.push(`configuration: ${status.config.last.errors.join("; ")}`);
  for (const one of status.instances) {
    if (one.regime === "failsafe") found.push(`${one.name} is in FAILSAFE, clocks at driver default: ${one.regime_reason}`);
    else if (one.telemetry.last_error && !one.telemetry.fresh) found.push(`${one.name}: ${one.telemetry.last_error}`);
    if (one.step.drifted) found.push(`${one.name}: the model no longer fits the server`);
    for (const [metric, a] of Object.entries(one.attainment)) {
      if (a.window_missed > a.window_permitted && a.window_total > 0) found.push(`${one.name}: ${metric.toUpperCase()} missed by ${a.window_missed} of ${a.window_total} requests, ${a.window_permitted.toFixed(1)} permitted`);
    }
  }
  return found.map((text) => el("li", text));
}

export function promises(one) {
  const table = el("table", "", "", row("th", "promise", "limit", "share", "kept", "misses in the window", "left"));
  for (const [metric, a] of Object.entries(one.attainment)) {
    const left = a.window_permitted - a.window_missed;
    const line = row("td", metric.toUpperCase(), seconds(a.limit_s), percent(a.quantile), percent(a.ratio, 2),
      `${a.window_missed} of ${a.window_total}`, left.toFixed(1));
    line.lastChild.className = left >= 0 ? "good" : "bad";
    table.append(line);
  }
  return table;
}

function row(kind, ...texts) {
  return el("tr", "", "", ...texts.map((text) => el(kind, text)));
}

export function gpus(one) {
  const table = el("table", "", "", row("th", "GPU", "clock", "asked for", "power", "temperature"));
  for (const gpu of one.gpus) {
    const line = row("td", gpu.name || gpu.uuid, gpu.clock_actual_mhz === null ? "–" : `${gpu.clock_actual_mhz} MHz`,
      gpu.clock_target_mhz === null ? "driver default" : `${gpu.clock_target_mhz} MHz`, watts(gpu.power_w),
      gpu.temperature_c === null ? "–" : `${Math.round(gpu.temperature_c)} °C`);
    line.firstChild.title = gpu.uuid;
    table.append(line);
  }
  return table;
}

export function decision(d) {
  const at = el("time", new Date(1000 * d.decided_unix_s).toLocaleTimeString());
  return el("li", "", "", at, el("b", d.instance + " "), d.applied ? "" : el("span", "not applied ", "warn"), d.reason);
}

export function pool(view) {
  const parts = [el("h2", "Instances")];
  if (view.fault) parts.push(el("p", `nothing is scaled down: ${view.fault}`, "bad"));
  if (view.manual) parts.push(el("p", `${view.manual.instances} set by hand (${view.manual.by}), ${Math.ceil(view.manual.left_s)} s more`, "warn"));
  if (view.plan) parts.push(el("p", (view.acting ? "" : "told only: ") + view.plan.reason));
  const counts = el("table", "", "", row("th", "kind", "desired", "ready", "starting", "draining", "asleep", "stopped", "failed"));
  for (const k of view.kinds) counts.append(row("td", k.kind, k.desired ?? "–", k.ready, k.starting, k.draining, k.asleep, k.stopped, k.failed));
  const members = el("table", "", "", row("th", "instance", "status", "for", "running", "waiting", "why"));
  for (const m of view.members) members.append(row("td", m.name, m.status, seconds(m.status_s), m.running, m.waiting, m.reason));
  return [...parts, counts, members];
}
