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
      agreement: done ? of("agreement_ratio_sum", labels) / of("agreement_ratio_count", labels) : null,
      whole: done && numbers.length ? 1 - numbers[0].value / done : null,
      ...speedup(of, labels) };
  });
  const dropped = samples.filter(({ metric }) => metric === "sleb_shadow_dropped_total")
    .map(({ labels, value: number }) => ({ model: labels.live_model, reason: labels.reason, number }));
  return { pairs, dropped };
}

/** Mean time per token, dense over pruned: either may be the live one. */
function speedup(of, pair) {
  const mean = (variant) => {
    const labels = { ...pair, variant };
    const number = of("tpot_seconds_count", labels);
    return number ? { number, mean: of("tpot_seconds_sum", labels) / number } : null;
  };
  const [dense, pruned] = [mean("dense"), mean("pruned")];
  return dense && pruned ? { speedup: dense.mean / pruned.mean, numTimed: dense.number } : { speedup: null, numTimed: 0 };
}
