// The top of the page: which mode, what is wrong, the figures that are looked at first, the decisions.

import { METRICS, binding, el, energy, lasting, mhz, percent, regimeClass, sentence, watts } from "./words.js";

export function banner(status) {
  if (status.mode === "shadow") {
    return [el("b", "Shadow mode: nothing is written. "), "The GPUs run at driver default; shown is what kvwatt would do."];
  }
  if (status.mode === "off") return [el("b", "Off. "), "Nothing is decided or written; the GPUs run at driver default."];
  const held = status.instances.filter((one) => one.override);
  return held.flatMap((one) => [
    el("b", `${one.name} is held by hand `), `at ${mhz(one.override.clock_mhz)} for another ${lasting(one.override.left_s)}. `,
  ]);
}

export function alarms(status) {
  const found = Object.entries(status.guard.alarms).map(([gpu, why]) => `${gpu}: ${why}`);
  const { guard, settings, config, security, ledger } = status;
  if (guard.state === "disconnected") found.push(`guard: not connected${guard.last_error ? `, ${guard.last_error}` : ""}: no clock can be set`);
  if (settings.last_error) found.push(`settings: ${settings.last_error}`);
  if (config.last && !config.last.ok) found.push(`configuration: ${config.last.errors.join("; ")}`);
  if (security.token_alarm) found.push(`tokens: ${security.token_alarm}`);
  if (security.audit_error) found.push(`audit log: ${security.audit_error}`);
  if (ledger.fault) found.push(`ledger: ${ledger.fault}`);
  for (const one of status.instances) found.push(...instanceAlarms(one));
  return found.map((text) => el("li", text));
}

function* instanceAlarms(one) {
  if (one.regime === "failsafe") yield `${one.name} is in FAILSAFE, clocks at driver default: ${one.regime_reason}`;
  else if (one.telemetry.last_error && !one.telemetry.fresh && one.regime !== "parked") yield `${one.name}: ${one.telemetry.last_error}`;
  if (one.model.state === "refused") yield `${one.name}: the model is refused: ${one.model.reason}`;
  if (one.step.drifted) yield `${one.name}: the model no longer fits the server`;
  for (const [metric, a] of Object.entries(one.attainment)) {
    if (a.window_missed > a.window_permitted && a.window_total > 0) {
      yield `${one.name}: ${METRICS[metric]} missed by ${a.window_missed.toFixed(1)} of ${Math.round(a.window_total)} requests, ${a.window_permitted.toFixed(1)} permitted`;
    }
  }
}

export function tiles(status) {
  const all = status.instances;
  const sum = (pick) => all.reduce((total, one) => total + (pick(one) ?? 0), 0);
  const seen = all.filter((one) => one.telemetry.fresh);
  const inside = (key) => (seen.length ? seen.reduce((total, one) => total + (one[key] ?? 0), 0) : "–");
  const unseen = all.filter((one) => !one.telemetry.fresh && one.regime !== "parked").length;
  return [
    tile("power now", watts(sum((one) => one.power_w)), `${energy(sum((one) => one.energy_j))} in ${lasting(status.uptime_s)}`),
    saving(status, sum((one) => one.savings?.saved_j), sum((one) => one.savings?.baseline_j)),
    least(all),
    tile("requests", `${inside("running")} running`, `${inside("waiting")} waiting${unseen ? `; not seen: ${unseen} of ${all.length} instances` : ""}`),
    guardTile(status.guard),
  ];
}

function saving(status, saved, base) {
  if (status.mode === "shadow") return wouldSave(status.instances.map((one) => one.shadow).filter((one) => one?.baseline_j > 0));
  const measured = status.ledger.measured;
  if (measured.length && measured.every((one) => one.baseline_j > 0)) {
    const add = (key) => measured.reduce((total, one) => total + one[key], 0);
    const [mid, low, high, all] = ["saved_j", "low_j", "high_j", "baseline_j"].map(add);
    return tile("energy saved, measured", percent(mid / all), `${percent(low / all)} to ${percent(high / all)} (${percent(measured[0].level, 0)} interval)`);
  }
  return tile("energy saved", base > 0 ? percent(saved / base) : "–", base > 0 ? `${energy(saved)}, estimate against driver default` : "no estimate yet");
}

function wouldSave(told) {
  if (!told.length) return tile("would have saved", "–", "no estimate yet");
  const base = told.reduce((total, one) => total + one.baseline_j, 0);
  const share = (key) => told.reduce((total, one) => total + (one[key] ?? 0) * one.baseline_j, 0) / base;
  const sure = told.every((one) => one.low_ratio !== null && one.high_ratio !== null);
  const between = sure ? `${percent(share("low_ratio"))} to ${percent(share("high_ratio"))}, ` : "";
  return tile("would have saved", percent(share("saved_ratio")), `${between}an estimate; nothing is set`);
}

function least(all) {
  const judged = all.flatMap((one) => Object.entries(one.attainment).map(([metric, a]) => ({ metric, name: one.name, ...a }))).filter((a) => a.ratio !== null);
  if (!judged.length) return tile("least kept promise", "–", "no request judged yet");
  const worst = judged.reduce((a, b) => (b.ratio - b.quantile < a.ratio - a.quantile ? b : a));
  const where = all.length > 1 ? ` (${worst.name})` : "";
  return tile("least kept promise", percent(worst.ratio, 2), `${METRICS[worst.metric]}${where}, ${percent(worst.quantile)} promised`, worst.ratio >= worst.quantile ? "good" : "bad");
}

function guardTile(guard) {
  if (guard.state === "unused") return tile("guard", "not used", "nothing is written in this mode");
  const lease = guard.lease_left_s === null ? "" : `lease ${guard.lease_left_s.toFixed(1)} of ${guard.lease_s} s`;
  return tile("guard", guard.state, lease, guard.state === "connected" ? "good" : "bad");
}

function tile(name, value, more = "", cls = "") {
  return el("div", "", "tile", el("h3", name), el("b", value, cls), el("span", more, "quiet"));
}

export function tabs(all, one, choose) {
  return all.map((item) => {
    const tab = el("button", "", "", `${item.name} `, el("span", item.regime, regimeClass(item.regime)));
    tab.setAttribute("aria-current", String(item === one));
    tab.onclick = () => choose(item.name);
    return tab;
  });
}

export function now(one) {
  const d = one.last_decision;
  if (!d || !["active", "shadow"].includes(one.regime)) return [el("span", one.regime_reason)];
  const [verb, clock] = one.shadow ? ["would ask for ", one.shadow.clock_mhz] : ["asks for ", d.clock_mhz];
  return [verb, el("b", mhz(clock)), `: ${sentence(d, one.slo)}`];
}

export function decision(d, slo) {
  const at = el("time", new Date(1000 * d.decided_unix_s).toLocaleTimeString("en-GB"));
  const tag = el("span", binding(d), `tag ${d.binding === "none" ? "warn" : ""}`);
  const told = d.applied ? [] : [el("span", d.regime === "shadow" ? "shadow, " : "not applied, ", "warn")];
  const line = el("li", "", "", at, el("b", mhz(d.clock_mhz)), tag, el("span", "", "words", ...told, sentence(d, slo)));
  line.title = d.reason;
  return line;
}

export function gpus(one) {
  const table = el("table", "", "", row("th", "GPU", "clock", one.regime === "shadow" ? "set" : "asked for", "power", "busy", "temperature"));
  for (const gpu of one.gpus) {
    const line = row("td", gpu.name || gpu.uuid, gpu.clock_actual_mhz === null ? "–" : mhz(gpu.clock_actual_mhz),
      mhz(gpu.clock_target_mhz), watts(gpu.power_w), percent(gpu.utilization, 0), gpu.temperature_c === null ? "–" : `${Math.round(gpu.temperature_c)} °C`);
    line.firstChild.title = gpu.uuid;
    table.append(line);
  }
  return table;
}

export function row(kind, ...texts) {
  return el("tr", "", "", ...texts.map((text) => el(kind, text)));
}
