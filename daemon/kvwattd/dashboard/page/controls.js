// What changes something: mode, promises, a clock by hand. Every call carries the token.

import { el } from "./cards.js";
import { headers, setToken } from "./stream.js";

const said = () => document.getElementById("said");
let fading;

export function say(text, cls) {
  said().textContent = text;
  said().className = cls;
  said().hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { said().hidden = true; }, 8000);
}

export async function change(method, path, body) {
  try {
    const answer = await fetch(`/api/v1/${path}`, {
      method, headers: headers(body ? { "Content-Type": "application/json" } : {}), body: body ? JSON.stringify(body) : undefined,
    });
    if (answer.ok) { say("done", "good"); return true; }
    const problem = await answer.json().catch(() => ({}));
    say([problem.title, problem.detail, problem.accepted && `accepted: ${problem.accepted}`].filter(Boolean).join(". ") || `HTTP ${answer.status}`, "bad");
  } catch (error) {
    say(`no answer: ${error.message}`, "bad");
  }
  return false;
}

export function install() {
  const dialog = document.getElementById("token-dialog");
  const value = document.getElementById("token-value");
  document.getElementById("token").onclick = () => dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue === "set") { setToken(value.value); say("the token is used from now on", "good"); }
    value.value = "";
  };
  const mode = document.getElementById("mode");
  mode.onchange = async () => { await change("PUT", "mode", { mode: mode.value }); mode.dataset.touched = ""; };
  mode.onfocus = () => { mode.dataset.touched = "1"; };
  mode.onblur = () => { mode.dataset.touched = ""; };
  document.getElementById("theme").onclick = toggleTheme;
  const kept = localStorage.getItem("kvwatt-theme");
  if (kept) document.documentElement.dataset.theme = kept;
}

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("kvwatt-theme", document.documentElement.dataset.theme);
}

export function slos(one) {
  const form = el("form", "", "row");
  for (const metric of ["ttft", "tbt", "e2e"]) {
    const input = Object.assign(el("input"), { type: "number", name: metric, step: "any", min: "0", size: 7, value: one.slo[metric]?.limit_s ?? "" });
    input.setAttribute("aria-label", `${metric} limit in seconds`);
    form.append(el("label", `${metric.toUpperCase()} s `, "", input));
  }
  form.append(el("button", "promise this"), button("as configured", () => change("DELETE", `slos/${encodeURIComponent(one.name)}`)));
  form.onsubmit = (event) => {
    event.preventDefault();
    const body = {};
    for (const metric of ["ttft", "tbt", "e2e"]) {
      const text = form.elements[metric].value;
      body[metric] = text === "" ? null : { limit_s: Number(text), quantile: one.slo[metric]?.quantile ?? 0.99 };
    }
    change("PUT", `slos/${encodeURIComponent(one.name)}`, body);
  };
  return form;
}

export function override(one) {
  const form = el("form", "", "row");
  const clock = Object.assign(el("input"), { type: "number", name: "clock", min: "0", placeholder: "MHz, empty: default" });
  const minutes = Object.assign(el("input"), { type: "number", name: "minutes", min: "1", max: "60", value: 10, required: true });
  clock.setAttribute("aria-label", "clock in MHz");
  minutes.setAttribute("aria-label", "minutes");
  const path = `instances/${encodeURIComponent(one.name)}/override`;
  form.append(clock, el("label", "for min ", "", minutes), el("button", "hold this clock"), button("automatic", () => change("DELETE", path)));
  form.onsubmit = (event) => {
    event.preventDefault();
    change("PUT", path, { clock_mhz: clock.value === "" ? null : Number(clock.value), duration_s: 60 * Number(minutes.value) });
  };
  return form;
}

function button(text, act) {
  return Object.assign(el("button", text), { type: "button", onclick: act });
}
