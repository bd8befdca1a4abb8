// Numbers and decisions in words. Text only ever through textContent: nothing of a server's is markup here.

export function el(tag, text = "", cls = "", ...children) {
  const node = document.createElement(tag);
  if (text !== "") node.textContent = text;
  if (cls) node.className = cls;
  node.append(...children);
  return node;
}

const known = (x) => x !== null && x !== undefined;
export const watts = (w) => (known(w) ? `${Math.round(w)} W` : "–");
export const percent = (x, digits = 1) => (known(x) ? `${(100 * x).toFixed(digits)} %` : "–");
export const mhz = (x) => (known(x) ? `${x.toLocaleString("en")} MHz` : "driver default");
export const count = (x) => (known(x) ? Math.round(x).toLocaleString("en") : "–");

export function energy(j) {
  if (!known(j)) return "–";
  if (Math.abs(j) >= 3.6e6) return `${(j / 3.6e6).toFixed(2)} kWh`;
  return Math.abs(j) >= 3600 ? `${(j / 3600).toFixed(1)} Wh` : `${Math.round(j)} J`;
}

export function seconds(s) {
  if (!known(s)) return "–";
  if (s < 1) return `${s < 0.01 ? (1000 * s).toFixed(1) : Math.round(1000 * s)} ms`;
  if (s < 100) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  return lasting(s);
}

/** A limit as it was set: without zeros at its end. */
export const limit = (s) => (s < 1 ? `${Number((1000 * s).toPrecision(6))} ms` : `${Number(s.toPrecision(6))} s`);

export function lasting(s) {
  if (s < 120) return `${Math.ceil(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} days`;
}

const REGIMES = { active: "good", shadow: "warn", failsafe: "bad", override: "warn", learning: "warn" };
export const regimeClass = (regime) => `badge ${REGIMES[regime] ?? ""}`;
export const METRICS = { ttft: "TTFT", tbt: "TBT", e2e: "E2E", itl: "ITL" };
export const MEANINGS = { ttft: "time to first token", tbt: "time between tokens", e2e: "arrival to last token" };

/** What the decision expects of each promise, as "TBT 41 ms of 60 ms". */
function expected(d, slo) {
  return Object.keys(MEANINGS)
    .filter((metric) => slo?.[metric] && known(d.chosen?.[`${metric}_s`]))
    .map((metric) => `${METRICS[metric]} ${seconds(d.chosen[`${metric}_s`])} of ${limit(slo[metric].limit_s)}`)
    .join(", ");
}

/** The decision's own last clause, or why the clock is left alone. */
export function sentence(d, slo) {
  const clause = d.reason.slice(d.reason.lastIndexOf(";") + 1).trim();
  if (d.clock_mhz === null) return d.reason.replace(/^driver default: /, "");
  const ahead = expected(d, slo);
  return ahead ? `expects ${ahead}; ${clause}` : clause;
}

const BINDINGS = { energy: "cheapest", lowest: "lowest", dwell: "just changed", none: "default", kv: "KV cache" };
export const binding = (d) => BINDINGS[d.binding] ?? METRICS[d.binding] ?? d.binding;
