// Whether what is decided on can be trusted: guard, model, telemetry, the daemon itself, the ledger.

import { count, el, lasting, percent, seconds } from "./words.js";

export function health(status, one) {
  return [
    line("guard", ...guard(status.guard)),
    line("model", ...model(one)),
    line("model now", ...fit(one.step)),
    line("telemetry", ...telemetry(one.telemetry)),
    line("energy counter", ...counters(one.gpus)),
    line("daemon", ...daemon(status)),
    line("ledger", ...ledger(status.ledger, one.name)),
  ];
}

function line(name, cls, text) {
  const dot = el("i", "", `dot ${cls}`);
  dot.title = cls || "not known";
  return el("p", "", "health", dot, el("b", name), el("span", text));
}

function guard(g) {
  if (g.state === "unused") return ["", "not used: nothing is written in this mode"];
  if (g.state === "disconnected") return ["bad", `not connected${g.last_error ? `: ${g.last_error}` : ""}`];
  const found = `${g.yields_total ?? 0} foreign clocks found, ${g.disobeyed_total ?? 0} not obeyed, ${g.driver_reloads_total ?? 0} driver reloads`;
  return [Object.keys(g.alarms).length ? "bad" : g.yields_total || g.disobeyed_total ? "warn" : "good", `protocol ${g.version}, lease ${g.lease_s} s; ${found}`];
}

function model(one) {
  const m = one.model;
  if (m.state !== "ready") return [m.state === "refused" ? "bad" : "warn", `${m.state}: ${m.reason || "clocks stay at driver default"}`];
  const refit = m.refit?.last ? `; last refit ${m.refit.last}` : m.refit?.enabled ? `; no refit yet (${count(m.refit.samples)} samples)` : "; refits are off";
  return ["good", `${m.hardware ?? "hardware not told"}, version ${m.version ?? "–"}, error ${percent(m.step_error_ratio)} when trained${refit}`];
}

function fit(step) {
  if (step.drifted) return ["bad", "drifted: it no longer fits this server, clocks are at driver default"];
  if (step.error_ratio === null) return ["", "nothing measured yet"];
  const held = step.coverage === null ? "" : `; the bound held for ${percent(step.coverage)} of steps`;
  const off = percent(Math.abs(step.error_ratio));
  return [Math.abs(step.error_ratio) > 0.25 ? "warn" : "good", `step ${seconds(step.measured_s)} measured, predicted ${off} ${step.error_ratio < 0 ? "short" : "long"}, corrected by ${step.bias?.toFixed(2) ?? "–"}${held}`];
}

function telemetry(t) {
  const failed = Object.values(t.errors_total).reduce((sum, n) => sum + n, 0);
  const from = t.source === "tap" ? "by the tap, every step" : t.tap?.unused ? `by polls (tap: ${t.tap.unused})` : "by polls";
  const age = t.age_s === null ? "no page yet" : `page ${seconds(t.age_s)} old`;
  return [t.fresh ? "good" : "bad", `${from}; ${age}, layout ${t.layout ?? "–"}, ${count(failed)} of ${count(t.polls_total)} polls failed`];
}

function counters(gpus) {
  const kept = gpus.map((gpu) => gpu.energy).filter(Boolean);
  if (!kept.length) return ["", "not read yet"];
  if (kept.some((e) => e.disagrees)) return ["warn", "counter and power differ by more than a tenth: savings are not proven meanwhile"];
  const estimated = kept.reduce((sum, e) => sum + e.estimated_j, 0);
  return [estimated > 0 ? "warn" : "good", estimated > 0 ? `${Math.round(estimated)} J of it had to be estimated` : "agrees with power"];
}

function daemon(status) {
  const late = status.ticks_total ? status.ticks_skipped_total / (status.ticks_total + status.ticks_skipped_total) : 0;
  const d = status.decision_duration;
  return [late > 0.05 ? "warn" : "good", `up ${lasting(status.uptime_s)}, ${percent(late)} of ticks late, a decision takes ${seconds(d.p50_s)} (p99 ${seconds(d.p99_s)})`];
}

function ledger(l, name) {
  if (!l.enabled) return ["", "not kept"];
  if (l.fault) return ["bad", l.fault];
  const held = l.holdouts.find((h) => h.instance === name);
  const now = held && ["warmup", "default"].includes(held.arm) ? "; held at driver default now, to measure the saving" : "";
  const windows = held ? `, holdout windows: ${count(held.windows_total)}` : "";
  return [l.dropped_total || l.damaged_total ? "warn" : "good", `intervals written: ${count(l.written_total)}${windows}${now}`];
}
