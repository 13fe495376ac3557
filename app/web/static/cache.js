// The KV cache: its usage, prefix hits and preemptions.

import { count } from "./format.js";

/** Value, tone and further lines of a card; `engine` is that of `/status`. */
export function cacheLines({ kv_cache_usage: usage, num_prefix_queries: asked, num_prefix_hits: found, num_preemptions: lost }) {
  const hits = asked > 0 ? `prefix hit rate ${percent(found / asked)}` : "no prefix lookups yet";
  return [`${percent(usage)} in use`, "", hits,
    lost > 0 ? `${count(lost, "preemption")}` : null];
}

const percent = (share) => `${Math.round(share * 100)} %`;
