"""Tables by domain show dense, pruned and repaired with intervals, and name every text."""

from dataclasses import replace
from math import exp

from hypothesis import given
from hypothesis import strategies as st

from pruning.checkpoints.card import model_card
from pruning.checkpoints.domain_tables import (
    depth_table,
    domain_table,
    explained,
    narrow_table,
    with_interval,
)
from pruning.checkpoints.trajectory import legend
from pruning.evaluation.quality import Interval, Measured
from tests.support.pruning_runs import RUN, domain_of, manifest_of

PROSE = domain_of("prose", ((4.0, 4.5, 5.0),), ((3.5, 4.0, 4.6),))
CODE = domain_of("code", ((3.5, 4.5, 5.5),))
NUM_REMOVED = 1


def test_a_row_for_each_domain_at_one_depth() -> None:
    headings, rows = depth_table([PROSE, CODE], NUM_REMOVED)
    assert headings[:4] == ("domain", "dense", "pruned", "pruned × dense")
    assert headings[4:] == ("repaired", "repaired × dense", "recovered")
    prose, code = rows
    dense = PROSE.dense_perplexity()
    assert prose[:3] == ("prose", with_interval(dense), f"{exp(4.5):.2f}")
    assert prose[3] == with_interval(PROSE.ratio(PROSE.raw[0]))
    assert prose[3].startswith("1.65 (")
    repaired = PROSE.repaired_after(1)
    assert repaired is not None
    assert prose[4] == f"{repaired.perplexity:.2f}"
    assert prose[5] == with_interval(PROSE.ratio(repaired))
    assert prose[6] == "93%"
    assert code[4:] == ("-", "-", "-")


def test_too_few_windows_are_said() -> None:
    few = replace(CODE, dense=Measured(4.0, 0.5, 3), raw=(Measured(4.5, 0.1, 3),))
    said = list(explained([PROSE, few]))
    assert "no intervals on code: at least 5 windows are needed" in said
    _, (_, row) = depth_table([PROSE, few], NUM_REMOVED)
    assert not any("(" in cell for cell in row)
    assert not any("too few" in line for line in explained([PROSE, CODE]))


def test_a_narrow_table_has_a_row_for_each_model() -> None:
    domains = [PROSE.at_depth(NUM_REMOVED), CODE.at_depth(NUM_REMOVED)]
    headings, rows = narrow_table(domains)
    assert headings == ("", "perplexity", "× dense", "recovered")
    _, wide = depth_table([PROSE, CODE], NUM_REMOVED)
    (_, *prose), (_, *code) = wide
    assert rows == [
        ("prose", "-", "-", "-"),
        ("  dense", prose[0], "-", "-"),
        ("  pruned", *prose[1:3], "-"),
        ("  repaired", *prose[3:]),
        ("code", "-", "-", "-"),
        ("  dense", code[0], "-", "-"),
        ("  pruned", *code[1:3], "-"),
    ]
    headings, _ = narrow_table(domains[1:])
    assert headings == ("", "perplexity", "× dense")


def test_a_healed_model_and_its_control_have_columns_and_rows() -> None:
    healed, control = (
        Measured.against((3.0, 4.0, 5.0) * 2, losses * 2)
        for losses in ((3.2, 4.2, 5.2), (3.0, 4.0, 5.1))
    )
    domain = replace(PROSE, healed=(*(None,) * (NUM_REMOVED - 1), healed), control=control)
    headings, [row] = depth_table([domain], NUM_REMOVED)
    assert headings[7:] == ("healed", "healed × dense", "healed: recovered", "control × dense")
    assert row[7] == f"{healed.perplexity:.2f}"
    assert row[8:] == (
        with_interval(domain.ratio(healed)),
        "60%",
        with_interval(domain.ratio(control)),
    )
    _, rows = narrow_table([domain.at_depth(NUM_REMOVED)])
    assert [cells[0].strip() for cells in rows[-2:]] == ["healed", "control"]
    assert rows[-2][3] == "60%"
    assert any(text.startswith("control:") for text in explained([domain]))


def test_columns_of_repair_are_left_out_where_nothing_was_repaired() -> None:
    headings, rows = depth_table([CODE], NUM_REMOVED)
    assert headings == ("domain", "dense", "pruned", "pruned × dense")
    assert [len(row) for row in rows] == [4]
    assert not any("recovered" in text for text in explained([CODE]))


def test_a_row_for_each_depth_of_one_domain() -> None:
    deeper = replace(PROSE, raw=(*PROSE.raw, Measured(6.0, 0.1)), repaired=(None, PROSE.raw[0]))
    headings, rows = domain_table(deeper)
    assert headings[0] == "removed"
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][3:] == ("-", "-", "-")
    assert rows[1][5] == "75%"


def test_one_window_has_a_value_without_an_interval() -> None:
    assert with_interval(Interval(2.0, None, None)) == "2.00"
    assert with_interval(Interval(2.0, 1.5, 3.0)) == "2.00 (1.50 to 3.00)"
    dense, pruned = Measured.of_dense((4.0,)), Measured.against((4.0,), (4.5,))
    one = replace(CODE, num_windows=1, dense=dense, raw=(pruned,))
    for domains in ([one], [one.at_depth(1)]):
        assert not any("intervals in" in sentence for sentence in explained(domains))
    assert any("intervals in" in sentence for sentence in explained([PROSE]))


def test_the_card_has_every_domain_and_its_text() -> None:
    run = manifest_of(6, (3,), (4.0, 4.25), (50.0, 60.0))
    manifest = replace(run, quality=replace(run.quality, domains=(PROSE, CODE)))
    card = model_card(manifest)
    headings, rows = depth_table([PROSE, CODE], NUM_REMOVED)
    for line in (headings, *rows):
        assert f"| {' | '.join(line)} |" in card
    assert (
        "- prose: some prose, 6 windows of 8 tokens (sha256 of the token ids digest of pr)." in card
    )
    assert "\nprose:\n\n| removed |" in card
    assert "{" not in card
    assert "as served, with its repair, on held-out text" in " ".join(
        legend(manifest, ("perplexity",))
    )
    assert "Quality by domain" not in model_card(RUN)


@given(st.lists(st.floats(0, 800), min_size=3, max_size=3))
def test_any_losses_can_be_shown(losses: list[float]) -> None:
    _, [row] = depth_table([domain_of("prose", (tuple(losses),))], NUM_REMOVED)
    assert all(len(cell) < 40 for cell in row)
