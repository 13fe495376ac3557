"""Less work than for users, where that changes nothing that a tiny model can show."""

from collections.abc import Mapping

LIMITS: Mapping[str, int] = {
    # of a domain: random models are never told apart, however many are measured
    "pruning.spec.evaluation.MAX_WINDOWS": 32,
    # that a repair is fitted on: tiny models have 48 columns at most
    "pruning.data.sources.REPAIR_TOKENS": 2**11,
    # of each sample text: whole ones are a fifth of a pruning run
    "pruning.evaluation.samples.MAX_NEW_TOKENS": 3,
}
