// How many instances run, how many should, why, and the number set by hand for a limited time.

import { row } from "./cards.js";
import { button, change, place } from "./controls.js";
import { el, lasting, percent, seconds } from "./words.js";

export function pool(view) {
  const parts = [];
  if (view.fault) parts.push(el("p", `nothing is scaled down: ${view.fault}`, "bad"));
  if (view.manual) parts.push(el("p", `${view.manual.instances} set by hand by ${view.manual.by}, for another ${lasting(view.manual.left_s)}`, "warn"));
  if (view.plan) parts.push(el("p", "", "", view.acting ? "" : el("b", "told only: ", "warn"), view.plan.reason));
  if (view.forecast) parts.push(el("p", ahead(view.forecast), "quiet"));
  return [...parts, scroll(kinds(view)), scroll(members(view)), changes(view)];
}

function ahead(f) {
  return `${f.now_per_s.toFixed(1)} requests a second now; in ${lasting(f.horizon_s)} ${f.mean_per_s.toFixed(1)} expected, planned for ${f.quantile_per_s.toFixed(1)} (${percent(f.quantile, 0)} quantile)`;
}

function kinds(view) {
  const table = el("table", "", "", row("th", "kind", "desired", "ready", "starting", "draining", "asleep", "stopped", "failed", "carries", "start takes"));
  for (const k of view.kinds) {
    table.append(row("td", k.kind, k.desired ?? "–", k.ready, k.starting, k.draining, k.asleep, k.stopped, k.failed,
      k.capacity_per_s === null ? "–" : `${k.capacity_per_s.toFixed(1)}/s`, seconds(k.start_s)));
  }
  return table;
}

const STATES = { ready: "good", starting: "warn", draining: "warn", failed: "bad" };

function members(view) {
  const table = el("table", "", "told", row("th", "instance", "status", "for", "running", "waiting", "KV", "why"));
  for (const m of view.members) {
    const line = row("td", m.name, m.status, lasting(m.status_s), m.running, m.waiting, percent(m.kv_usage, 0), m.reason);
    line.children[1].className = STATES[m.status] ?? "quiet";
    table.append(line);
  }
  return table;
}

function changes(view) {
  const list = el("ol", "", "decisions");
  for (const plan of view.changes.slice(0, 6)) {
    const acts = plan.actions.map((a) => `${a.action} ${a.member}${a.refused ? ` (not begun: ${a.refused})` : ""}`).join(", ");
    list.append(el("li", "", "", el("time", new Date(1000 * plan.decided_unix_s).toLocaleTimeString("en-GB")), el("b", `${acts}: `), el("span", plan.reason, "words")));
  }
  return list;
}

const scroll = (table) => el("div", "", "scroll", table);

export function scale(view) {
  const form = el("form", "", "row");
  const many = place("number", "instances", "number of instances", { min: view.minimum, max: view.maximum, required: true, placeholder: `${view.minimum} to ${view.maximum}` });
  const minutes = place("number", "minutes", "minutes of this number", { min: 1, max: 1440, value: 30, required: true });
  form.append(el("label", "keep ", "", many, " running"), el("label", "for ", "", minutes, " min"), el("button", "scale by hand"), button("automatic", () => change("DELETE", "pool/scale")));
  form.onsubmit = (event) => {
    event.preventDefault();
    change("PUT", "pool/scale", { instances: Number(many.value), duration_s: 60 * Number(minutes.value) });
  };
  return form;
}
