// What changes something: mode, promises, a clock or a number of instances by hand. Every call carries the token.

import { hasToken, headers, setToken } from "./stream.js";
import { el } from "./words.js";

const at = (id) => document.getElementById(id);
let fading;

export function say(text, cls) {
  at("said").textContent = text;
  at("said").className = cls;
  at("said").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { at("said").hidden = true; }, 8000);
}

export async function change(method, path, body) {
  try {
    const answer = await fetch(`/api/v1/${path}`, {
      method, headers: headers(body ? { "Content-Type": "application/json" } : {}), body: body ? JSON.stringify(body) : undefined,
    });
    if (answer.ok) { say("done", "good"); return true; }
    const problem = await answer.json().catch(() => ({}));
    const told = [problem.detail ?? problem.title, problem.accepted && `Accepted: ${problem.accepted}`].filter(Boolean).join(". ");
    say(answer.status === 401 && !hasToken() ? `${told}. Press "token" above.` : told || `HTTP ${answer.status}`, "bad");
  } catch (error) {
    say(`no answer: ${error.message}`, "bad");
  }
  return false;
}

export function install() {
  const dialog = at("token-dialog");
  const value = at("token-value");
  at("token").onclick = () => dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue === "set") { setToken(value.value); say("the token is used from now on", "good"); }
    value.value = "";
    showToken();
  };
  installMode(at("mode"));
  at("theme").onclick = toggleTheme;
  const kept = localStorage.getItem("kvwatt-theme");
  if (kept) document.documentElement.dataset.theme = kept;
  showToken();
}

function showToken() {
  at("token").textContent = hasToken() ? "token ✓" : "token";
}

const ASKED = {
  active: "Switch to active? kvwatt then sets GPU clocks, and starts and stops instances where a pool is configured.",
  shadow: "Switch to shadow? Clocks go back to driver default; decisions are only shown.",
  off: "Switch off? Clocks go back to driver default and nothing is decided.",
};

function installMode(mode) {
  mode.onchange = async () => {
    if (confirm(ASKED[mode.value])) await change("PUT", "mode", { mode: mode.value });
    mode.dataset.touched = "";
    mode.blur();
  };
  mode.onfocus = () => { mode.dataset.touched = "1"; };
  mode.onblur = () => { mode.dataset.touched = ""; };
}

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("kvwatt-theme", document.documentElement.dataset.theme);
}

export function override(one) {
  const form = el("form", "", "row");
  const path = `instances/${encodeURIComponent(one.name)}/override`;
  const range = one.clocks?.permitted_min_mhz ? `${one.clocks.permitted_min_mhz} to ${one.clocks.permitted_max_mhz}` : "";
  const clock = place("number", "clock", "clock in MHz", { min: 0, placeholder: "default" });
  const minutes = place("number", "minutes", "minutes of this clock", { min: 1, max: 60, value: 10, required: true });
  form.append(el("label", "hold ", "", clock, " MHz"), el("label", "for ", "", minutes, " min"), el("button", "hold this clock"), button("automatic", () => change("DELETE", path)));
  if (range) form.append(el("span", `${range} MHz may be asked of these GPUs; empty is driver default`, "quiet"));
  form.onsubmit = (event) => {
    event.preventDefault();
    change("PUT", path, { clock_mhz: clock.value === "" ? null : Number(clock.value), duration_s: 60 * Number(minutes.value) });
  };
  return form;
}

export function place(type, name, label, more) {
  const input = Object.assign(el("input"), { type, name, ...more });
  input.setAttribute("aria-label", label);
  return input;
}

export function button(text, act) {
  return Object.assign(el("button", text), { type: "button", onclick: act });
}
