// Keys and values: how many pages are in use, and how much of the prompts was there already.

/** Value, tone and further lines of a card; `engine` is that of `/status`. */
export function cacheLines({ kv_cache_usage: usage, num_prefix_queries: asked, num_prefix_hits: found, num_preemptions: lost }) {
  const hits = asked > 0 ? `${percent(found / asked)} of the tokens of prompts were there` : "no prompt looked for one yet";
  return [`${percent(usage)} of the pages in use`, "", hits,
    lost > 0 ? `${lost} times a request left its pages to others` : null];
}

const percent = (share) => `${Math.round(share * 100)} %`;
