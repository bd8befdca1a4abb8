// The page from frame to frame. Forms are made once for an instance, so that typing is not overwritten.

import { alarms, decision, el, gpus, pool, promises, regimeClass, tiles } from "./cards.js";
import { install, override, slos } from "./controls.js";
import { draw, remember } from "./plots.js";
import { follow } from "./stream.js";

const at = (id) => document.getElementById(id);
let chosen = decodeURIComponent(location.hash.slice(1)) || null;
let shown = null;

function show(frame) {
  const { status, decisions } = frame;
  remember(frame);
  at("build").textContent = status.build.version;
  if (!at("mode").dataset.touched) at("mode").value = status.mode;
  at("alarms").replaceChildren(...alarms(status));
  at("tiles").replaceChildren(...tiles(status));
  const one = status.instances.find((item) => item.name === chosen) ?? status.instances[0];
  tabs(status.instances, one);
  if (one) instance(one);
  at("pool").hidden = !status.pool?.enabled;
  if (status.pool?.enabled) at("pool").replaceChildren(...pool(status.pool));
  at("decisions").replaceChildren(...decisions.filter((d) => !one || d.instance === one.name).map(decision));
}

function tabs(all, one) {
  at("instances").replaceChildren(...all.map((item) => {
    const tab = el("button", "", "", item.name + " ", el("span", item.regime, regimeClass(item.regime)));
    tab.setAttribute("aria-current", String(item === one));
    tab.onclick = () => { chosen = item.name; location.hash = encodeURIComponent(item.name); };
    return tab;
  }));
}

function instance(one) {
  if (shown !== one.name) { build(one); shown = one.name; }
  at("regime").textContent = one.regime;
  at("regime").className = regimeClass(one.regime);
  at("why").textContent = one.regime_reason || one.last_decision?.reason || "";
  at("promises").replaceChildren(promises(one));
  at("gpus").replaceChildren(gpus(one));
  at("override-left").textContent = one.override ? `held by hand for ${Math.ceil(one.override.left_s)} s more` : "";
  draw(one.name);
}

function build(one) {
  const plot = (title, id) => el("section", "", "", el("h2", title), place(id));
  at("instance").replaceChildren(
    el("section", "", "wide", el("h2", "", "", one.name + " ", named("span", "regime")), named("p", "why"), named("div", "gpus")),
    plot("Clock", "plot-clock"), plot("Power", "plot-power"), plot("Batch and queue", "plot-batch"),
    plot("KV cache", "plot-kv"), plot("Step time", "plot-step"),
    el("section", "", "", el("h2", "Promises"), named("div", "promises"), el("h3", "change them"), slos(one)),
    el("section", "", "", el("h2", "Clock by hand"), override(one), named("p", "override-left")),
  );
}

const named = (tag, id) => Object.assign(el(tag), { id });
const place = (id) => Object.assign(named("div", id), { className: "plot" });

install();
follow(show, (state) => {
  at("link").textContent = state;
  at("link").className = `badge ${state === "live" ? "good" : "bad"}`;
});
