"""Names of variants: formatting and parsing are inverse."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.models.names import VariantName, split_depth, split_int8, split_raw

MODELS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
JOBS = st.from_regex(r"prn-[0-9a-f]{21}", fullmatch=True)
DEPTHS = st.integers(min_value=0, max_value=9999)


@given(st.builds(VariantName, MODELS, st.none() | JOBS, st.none() | DEPTHS))
def test_parsing_what_was_formatted_gives_the_parts(name: VariantName) -> None:
    assert VariantName.parse(str(name)) == name
    raw = replace(name, is_raw=not name.is_dense)
    assert VariantName.parse(str(raw)) == raw
    assert split_raw(str(raw)) == (str(name), raw.is_raw)
    int8 = replace(raw, is_int8=True)
    assert VariantName.parse(str(int8)) == int8
    assert split_int8(str(int8)) == (str(raw), True)
    assert split_int8(str(raw)) == (str(raw), False)


@given(st.builds(VariantName, MODELS, JOBS, st.none() | DEPTHS, is_healed=st.just(value=True)))
def test_a_depth_stands_behind_the_healed_checkpoint(name: VariantName) -> None:
    assert VariantName.parse(str(name)) == name
    checkpoint, *depth = str(name).rsplit("-", 1) if name.depth is not None else [str(name)]
    assert VariantName.of_checkpoint(checkpoint) == replace(name, depth=None)
    assert split_depth(str(name)) == ((checkpoint, int(depth[0])) if depth else None)


@given(st.builds(VariantName, MODELS, st.none() | JOBS))
def test_the_name_of_a_checkpoint_has_no_depth(name: VariantName) -> None:
    assert VariantName.of_checkpoint(str(name)) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny", VariantName("tiny")),
        ("tiny-135", VariantName("tiny-135")),
        ("tiny@-3", VariantName("tiny", depth=3)),
        ("tiny@prn-1-3", VariantName("tiny", "prn-1", 3)),
        ("tiny@prn-a", VariantName("tiny", "prn-a")),
        ("@-6", VariantName("", depth=6)),
        ("tiny@", VariantName("tiny@")),
        ("tiny@-12345", VariantName("tiny", "-12345")),
        ("tiny@-3+raw", VariantName("tiny", depth=3, is_raw=True)),
        ("tiny@prn-1+raw", VariantName("tiny", "prn", 1, is_raw=True)),
        ("tiny@prn-1-3+raw", VariantName("tiny", "prn-1", 3, is_raw=True)),
        ("@-6+raw", VariantName("", depth=6, is_raw=True)),
        ("tiny+raw", VariantName("tiny+raw")),
        ("tiny+int8", VariantName("tiny", is_int8=True)),
        ("tiny@-3+raw+int8", VariantName("tiny", depth=3, is_raw=True, is_int8=True)),
        ("@-6+int8", VariantName("", depth=6, is_int8=True)),
        ("tiny@-3+healed", VariantName("tiny", depth=3, is_healed=True)),
        ("@-3+healed+raw", VariantName("", depth=3, is_raw=True, is_healed=True)),
        ("tiny@prn-1+healed", VariantName("tiny", "prn-1", is_healed=True)),
        ("tiny@prn-1+healed-2", VariantName("tiny", "prn-1", 2, is_healed=True)),
        ("tiny@-3+raw+raw", VariantName("tiny", "-3+raw", is_raw=True)),
    ],
)
def test_parses_each_form(text: str, expected: VariantName) -> None:
    assert VariantName.parse(text) == expected


def test_the_last_part_of_a_checkpoint_may_look_like_a_depth() -> None:
    assert VariantName.of_checkpoint("tiny@run-1") == VariantName("tiny", "run-1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short-3", ("short", 3)),
        ("tiny@prn-1-3", ("tiny@prn-1", 3)),
        ("short", None),
        ("short-", None),
        ("short--3", None),
        ("tiny@-3", None),
        ("short-12345", None),
    ],
)
def test_splits_a_checkpoint_from_the_depth(text: str, expected: tuple[str, int] | None) -> None:
    assert split_depth(text) == expected
