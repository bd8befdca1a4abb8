// The page from frame to frame. Forms are made once for an instance, so that typing is not overwritten.

import { alarms, banner, decision, gpus, now, tabs, tiles } from "./cards.js";
import { install, override } from "./controls.js";
import { health } from "./health.js";
import { draw, hasPlots, recall, remember, setSpan } from "./plots.js";
import { pool, scale } from "./pool.js";
import { promises, slos } from "./promises.js";
import { follow, read } from "./stream.js";
import { el, lasting, regimeClass } from "./words.js";

const at = (id) => document.getElementById(id);
let chosen = decodeURIComponent(location.hash.slice(1)) || null;
let shown = null;
let latest = null;
const recalled = new Set();

async function show(frame) {
  const { status, decisions } = frame;
  const one = status.instances.find((item) => item.name === chosen) ?? status.instances[0];
  // Frames carry the course of the first instances only.
  if (one && !(one.name in frame.trajectories) && status.instances.length > Object.keys(frame.trajectories).length) {
    frame.trajectories[one.name] = await read(`instances/${encodeURIComponent(one.name)}/trajectory`);
  }
  latest = { status, one };
  remember(frame);
  if (one && !recalled.has(one.name)) {
    recalled.add(one.name);
    const history = await read(`instances/${encodeURIComponent(one.name)}/history`);
    if (history) recall(one.name, history);
  }
  top(status, one);
  if (one) instance(status, one);
  fleet(status.pool);
  at("decisions").replaceChildren(...decisions.filter((d) => !one || d.instance === one.name).map((d) => decision(d, one?.slo)));
}

function top(status, one) {
  at("build").textContent = status.build.version;
  if (!at("mode").dataset.touched) at("mode").value = status.mode;
  const told = banner(status);
  at("banner").hidden = !told.length;
  at("banner").className = status.mode;
  at("banner").replaceChildren(...told);
  at("alarms").replaceChildren(...alarms(status));
  at("tiles").replaceChildren(...tiles(status));
  at("instances").hidden = status.instances.length < 2;
  at("instances").replaceChildren(...tabs(status.instances, one, choose));
}

function choose(name) {
  chosen = name;
  location.hash = encodeURIComponent(name);
}

function instance(status, one) {
  if (shown !== one.name) { build(one); shown = one.name; }
  at("regime").textContent = one.regime;
  at("regime").className = regimeClass(one.regime);
  at("serves").textContent = [one.model_name, one.tp > 1 ? `on ${one.tp} GPUs` : "", one.url].filter(Boolean).join(", ");
  at("why").replaceChildren(...now(one));
  at("promises").replaceChildren(...promises(one));
  at("gpus").replaceChildren(gpus(one));
  at("health").replaceChildren(...health(status, one));
  at("override-left").textContent = one.override ? `held by hand for another ${lasting(one.override.left_s)}` : "";
  draw(one);
}

function build(one) {
  at("instance").replaceChildren(
    el("section", "", "wide", el("h2", "", "", `${one.name} `, named("span", "regime"), " ", named("small", "serves", "quiet")), named("p", "why", "why"), named("div", "gpus", "scroll")),
    plot("Clock", "plot-clock", "shaded: what kvwatt chooses from; lines: supported"), plot("Power", "plot-power"),
    plot("Batch and queue", "plot-batch", "band: 90 % of courses"), plot("KV cache", "plot-kv", "band: 90 % of courses"),
    el("section", "", "wide", el("h2", "Promises"), named("div", "promises", "promises"), el("h3", "change the limits"), slos(one)),
    plot("Step time", "plot-step"), el("section", "", "", el("h2", "Health"), named("div", "health")),
    el("section", "", "wide", el("h2", "Clock by hand"), override(one), named("p", "override-left", "warn")),
  );
}

function plot(title, id, note = "") {
  return el("section", "", "", el("h2", "", "", title, el("small", ` ${note}`, "quiet")), named("div", id, "plot"));
}

function fleet(view) {
  at("pool").hidden = !view?.enabled;
  if (!view?.enabled) return;
  if (!at("pool-view")) {
    at("pool").replaceChildren(el("h2", "Instances"), named("div", "pool-view"), el("h3", "number by hand"), scale(view));
  }
  at("pool-view").replaceChildren(...pool(view));
}

const named = (tag, id, cls = "") => Object.assign(el(tag, "", cls), { id });

install();
for (const choice of document.querySelectorAll("#span button")) {
  choice.onclick = () => {
    setSpan(Number(choice.value));
    for (const other of document.querySelectorAll("#span button")) other.setAttribute("aria-pressed", String(other === choice));
    if (latest?.one) draw(latest.one);
  };
}
window.addEventListener("load", () => { at("no-plots").hidden = hasPlots(); });
follow(show, (state, sinceUnix_s) => {
  at("link").textContent = state;
  at("link").className = `badge ${state === "live" ? "good" : "bad"}`;
  document.body.classList.toggle("old", state !== "live");
  at("old").hidden = state === "live" || sinceUnix_s === null;
  if (sinceUnix_s !== null) at("old").textContent = `Nothing new since ${new Date(1000 * sinceUnix_s).toLocaleTimeString("en-GB")}: what is shown is old. A daemon that has ended holds no clock: within the lease time the GPUs are at driver default.`;
});
