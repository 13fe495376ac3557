// The words of a text that another one does not have, by their longest common subsequence.

const MAX_WORDS = 800; // of each text; the product of both is computed

const wordsOf = (text) => text.match(/\s*\S+/g) ?? [];

/** Parts `{text, isOther}` of `other`: words that do not stand in `one`, in the same order, are other. */
export function wordDiff(one, other) {
  const [left, right] = [wordsOf(one), wordsOf(other)];
  let begin = 0;
  while (begin < Math.min(left.length, right.length) && same(left[begin], right[begin])) begin += 1;
  const [old, found] = [left.slice(begin), right.slice(begin)];
  const kept = old.length > MAX_WORDS || found.length > MAX_WORDS ? new Set() : common(old, found);
  return joined([...right.slice(0, begin).map((text) => ({ text, isOther: false })),
    ...found.map((text, index) => ({ text, isOther: !kept.has(index) }))]);
}

const same = (one, other) => one.trim() === other.trim();

/** Which words of `found` belong to a longest common subsequence. */
function common(old, found) {
  const lengths = Array.from({ length: old.length + 1 }, () => new Uint16Array(found.length + 1));
  for (let at = old.length - 1; at >= 0; at -= 1) {
    for (let to = found.length - 1; to >= 0; to -= 1) {
      lengths[at][to] = same(old[at], found[to]) ? lengths[at + 1][to + 1] + 1 : Math.max(lengths[at + 1][to], lengths[at][to + 1]);
    }
  }
  const kept = new Set();
  for (let at = 0, to = 0; at < old.length && to < found.length;) {
    if (same(old[at], found[to])) { kept.add(to); at += 1; to += 1; }
    else if (lengths[at + 1][to] >= lengths[at][to + 1]) at += 1;
    else to += 1;
  }
  return kept;
}

/** Neighbours of a kind as one part. */
function joined(parts) {
  const found = [];
  for (const { text, isOther } of parts) {
    const last = found.at(-1);
    if (last?.isOther === isOther) last.text += text;
    else found.push({ text, isOther });
  }
  return found;
}
