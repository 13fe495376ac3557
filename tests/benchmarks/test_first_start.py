"""The table of first and later starts."""

from benchmarks.first_start import Start, markdown


def test_the_table_has_medians_and_no_time_of_what_did_not_happen() -> None:
    first = [Start(4.0, 4.5, 16.0, 30.0, 9.0), Start(6.0, 6.5, 18.0, None, 11.0)]
    text = markdown({"first": first, "later": [Start(4.0, 4.1, 4.0, None, 9.0)]})
    assert "| first | 5.0 s | 5.5 s | 17.0 s | 30.0 ms | 10.0 ms |" in text
    assert "| later | 4.0 s | 4.1 s | 4.0 s | - | 9.0 ms |" in text
