// Each promise: what the decision expects now, what was kept, how many misses are left; and the form that changes them.

import { button, change, place } from "./controls.js";
import { MEANINGS, METRICS, count, el, lasting, limit, percent, seconds } from "./words.js";

export function promises(one) {
  const made = Object.keys(MEANINGS).filter((metric) => one.slo[metric]);
  return made.map((metric) => promise(metric, one, one.last_decision?.chosen?.[`${metric}_s`]));
}

function promise(metric, one, ahead) {
  const [target, a, would] = [one.slo[metric], one.attainment[metric], one.shadow?.attainment[metric]];
  const card = el("div", "", "promise", el("h3", "", "", el("b", METRICS[metric]), ` ${limit(target.limit_s)} for ${Number((100 * target.quantile).toPrecision(6))} %`));
  card.title = MEANINGS[metric];
  card.append(meter("expected now", ahead ?? null, target.limit_s, seconds(ahead), "at the chosen clock, as the decision sees it"));
  if (!a) return card;
  card.append(meter(`${percent(a.quantile, 0)} stayed within`, a.observed_s, a.limit_s, seconds(a.observed_s), "since the start, by the server's histogram"));
  const left = a.window_permitted - a.window_missed;
  card.append(
    fact("kept", percent(a.ratio, 2), `of ${count(a.total)} requests`, a.ratio === null ? "" : a.ratio >= a.quantile ? "good" : "bad"),
    ...(would ? [fact("would have kept", percent(would.ratio, 2), `of ${count(would.total)}, an estimate`, would.ratio === null ? "" : would.ratio >= target.quantile ? "good" : "bad")] : []),
    fact("misses left", left.toFixed(1), `of ${a.window_permitted.toFixed(1)} in ${lasting(a.window_s)}`, left >= 0 ? "good" : "bad"),
    bar(a.window_permitted > 0 ? left / a.window_permitted : 0, left >= 0 ? "good" : "bad"),
  );
  return card;
}

function meter(name, value, most_s, text, title) {
  const line = el("div", "", "", fact(name, text, `of ${limit(most_s)}`, value > most_s ? "bad" : ""), bar(value === null ? 0 : value / most_s, value > most_s ? "bad" : ""));
  line.title = title;
  return line;
}

function fact(name, value, more, cls) {
  return el("p", "", "fact", el("span", name, "quiet"), el("span", "", "", el("b", value, cls), ` ${more}`));
}

function bar(share, cls) {
  const full = el("i", "", cls);
  full.style.width = `${Math.min(Math.max(100 * share, 0), 100)}%`;
  return el("div", "", "bar", full);
}

export function slos(one) {
  const form = el("form", "", "row");
  const path = `slos/${encodeURIComponent(one.name)}`;
  for (const metric of Object.keys(MEANINGS)) {
    const input = place("number", metric, `${metric} limit in seconds`, { step: "any", min: "0", value: one.slo[metric]?.limit_s ?? "", placeholder: "none" });
    form.append(el("label", `${METRICS[metric]} `, "", input, " s"));
  }
  form.append(el("button", "set promises"), button("as configured", () => change("DELETE", path)));
  form.onsubmit = (event) => {
    event.preventDefault();
    const body = {};
    for (const metric of Object.keys(MEANINGS)) {
      const text = form.elements[metric].value;
      body[metric] = text === "" ? null : { limit_s: Number(text), quantile: one.slo[metric]?.quantile ?? 0.99 };
    }
    change("PUT", path, body);
  };
  return form;
}
