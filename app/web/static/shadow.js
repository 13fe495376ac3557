// Shadow traffic, read from the metrics of the service in the text format of Prometheus.

const LINE = /^(sleb_shadow_\w+)\{(.*)\} (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const WHOLE = 0.99; // the upper bound of the last bucket below complete agreement

/** The samples of shadow traffic: `{metric, labels, value}`. */
export function samplesOf(metrics) {
  return metrics.split("\n").map((line) => LINE.exec(line)).filter(Boolean).map(([, metric, labels, value]) => ({
    metric, value: Number(value),
    labels: Object.fromEntries([...labels.matchAll(LABEL)].map(([, key, found]) => [key, unescaped(found)])),
  }));
}

const unescaped = (value) => value.replace(/\\(.)/g, (_, found) => (found === "n" ? "\n" : found));

/** What is known of each pair of models, and what was dropped. */
export function pairsOf(samples) {
  const of = (metric, labels) => samples.find((each) => each.metric === `sleb_shadow_${metric}`
    && Object.entries(labels).every(([key, value]) => each.labels[key] === value))?.value ?? null;
  const pairs = samples.filter(({ metric }) => metric === "sleb_shadow_done_total").map(({ labels, value: done }) => {
    const numbers = samples.filter((each) => each.metric === "sleb_shadow_agreement_ratio_bucket" && Number(each.labels.le) === WHOLE
      && each.labels.live_model === labels.live_model && each.labels.shadow_model === labels.shadow_model);
    return { live: labels.live_model, shadow: labels.shadow_model, done,
      agreement: mean(of, "agreement_ratio", { live_model: labels.live_model, shadow_model: labels.shadow_model }),
      floor: mean(of, "floor_agreement_ratio", { live_model: labels.live_model }),
      whole: done && numbers.length ? 1 - numbers[0].value / done : null,
      numCached: of("cached_tokens_total", { live_model: labels.live_model, shadow_model: labels.shadow_model }) ?? 0,
      numDifferent: of("different_kernels_total", { live_model: labels.live_model, shadow_model: labels.shadow_model }) ?? 0,
      ...speedup(samples, of, { live_model: labels.live_model, shadow_model: labels.shadow_model }) };
  });
  const dropped = samples.filter(({ metric }) => metric === "sleb_shadow_dropped_total")
    .map(({ labels, value: number }) => ({ model: labels.live_model, reason: labels.reason, number }));
  return { pairs, dropped };
}

function mean(of, metric, labels) {
  const number = of(`${metric}_count`, labels);
  return number ? of(`${metric}_sum`, labels) / number : null;
}

/** Mean time per token of the last pairs, dense over pruned, and the control: a model over itself. */
function speedup(samples, of, pair) {
  const time = "tpot";
  const bounds = (metric, labels) => ({ ratio: of(metric, { ...labels, time, bound: "ratio" }),
    low: of(metric, { ...labels, time, bound: "low" }), high: of(metric, { ...labels, time, bound: "high" }) });
  const verdict = samples.find((each) => each.metric === "sleb_shadow_verdict" && each.value === 1 && each.labels.time === time
    && each.labels.live_model === pair.live_model && each.labels.shadow_model === pair.shadow_model)?.labels.verdict ?? null;
  const control = { live_model: pair.live_model };
  return { speedup: { ...bounds("speedup", pair), number: of("speedup_pairs", { ...pair, time }) ?? 0 }, verdict,
    control: { ...bounds("control_speedup", control), number: of("control_pairs", { ...control, time }) ?? 0 } };
}
