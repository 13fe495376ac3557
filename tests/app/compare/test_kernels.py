"""Different kernels of two sides are found, and nothing else is taken for a difference."""

import pytest

from app.compare.speedup import all_kernels, different_kernels, kernel_names

BLOCKS, HEAD = "blocks, decode of 1", "head of 1"


@pytest.mark.parametrize(
    ("baseline", "variant", "says"),
    [
        ([{BLOCKS: "compiled"}], [{BLOCKS: "compiled", HEAD: "torch"}], None),
        ([{BLOCKS: "compiled"}], [{"int8 blocks, decode of 1": "torch"}], None),
        ([], [{BLOCKS: "torch"}], None),
        (
            [{BLOCKS: "compiled", HEAD: "torch"}],
            [{BLOCKS: "torch", HEAD: "torch"}],
            "different kernels: blocks, decode of 1 (compiled against torch)",
        ),
        (
            [{BLOCKS: "compiled"}, {BLOCKS: "torch"}],  # chosen again in between
            [{BLOCKS: "torch"}, {BLOCKS: "compiled"}],
            f"different kernels: {BLOCKS} (compiled and torch against compiled and torch)",
        ),
    ],
)
def test_only_the_same_work_by_different_kernels_is_an_objection(
    baseline: list[dict[str, str]], variant: list[dict[str, str]], says: str | None
) -> None:
    assert different_kernels(all_kernels(baseline), all_kernels(variant)) == says


def test_a_report_names_them_all() -> None:
    kernels = all_kernels([{HEAD: "torch", BLOCKS: "compiled"}, {BLOCKS: "torch"}])
    assert kernel_names(kernels) == {BLOCKS: "compiled and torch", HEAD: "torch"}
