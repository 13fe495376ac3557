"""Progress bars that show that something happens."""

from rich.console import Console

from app.commands.progress import MovingBar, SearchBar, search_progress


def test_a_bar_moves_until_the_first_count_and_then_shows_the_share() -> None:
    progress = search_progress(Console(stderr=True))
    bar = SearchBar(progress)
    bar.phase("calibrate")
    [task] = progress.tasks
    column = next(column for column in progress.columns if isinstance(column, MovingBar))
    assert column.render(task).pulse
    bar.evaluated(0, 30)
    assert column.render(task).pulse
    bar.evaluated(1, 30)
    assert not column.render(task).pulse
    assert (column.render(task).completed, column.render(task).total) == (1, 30)
