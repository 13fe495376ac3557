"""Histogram boundaries: those of vLLM, and between them enough to tell a speed-up from none."""


def latency_buckets(
    *standard: float, fill_from: float = 0.001, fill_to: float = 10.0
) -> tuple[float, ...]:
    """vLLM's boundaries in seconds, so that SLO queries carry over, and a geometric fill.

    Steps of 1.1 tell a speed-up of 1.25 from none; the standard ones alone do not.
    """
    filled = []
    while fill_from <= fill_to:
        filled.append(float(f"{fill_from:.3g}"))
        fill_from *= 1.1
    return tuple(sorted({*standard, *filled}))


TTFT_S = latency_buckets(
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
PER_TOKEN_S = latency_buckets(
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80
)
REQUEST_S = latency_buckets(
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680
)
TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
SEQUENCES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0)
