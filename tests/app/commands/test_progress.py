"""Progress bars that show that something happens."""

from rich.console import Console

from app.commands.progress import HealWork, MovingBar, SearchBar, search_progress


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


def test_the_bar_of_a_healing_covers_both_trainings_and_the_evaluation() -> None:
    progress = search_progress(Console(stderr=True))
    work = HealWork(num_tokens=1000, num_trainings=2, num_evaluated=500)
    bar, seen = SearchBar(progress, heal=work), []

    def see() -> None:
        [task] = progress.tasks
        assert task.description == "heal"
        seen.append((task.completed, task.total))

    bar.phase("heal")
    for which, ratio in (("healed", 0.5), ("healed", 1.0), ("control", 0.5), ("control", 1.0)):
        bar.healed(which, 7, ratio, 1.0, None)
        see()
    bar.phase("evaluate")
    for done in (0, 3, 6):
        bar.evaluating(done, 6)
        see()
    expected = [500, 1000, 1500, 2000, 2000, 2250, 2500]
    assert seen == [(each, 2500) for each in expected]
    bar.phase("publish")
    assert progress.tasks[0].finished
    assert progress.tasks[1].description == "publish"


def test_without_an_estimate_an_evaluation_has_a_bar_of_its_own() -> None:
    progress = search_progress(Console(stderr=True))
    bar = SearchBar(progress, heal=HealWork(num_tokens=1000, num_trainings=1))
    bar.phase("heal")
    bar.healed("healed", 1000, 1.0, 1.0, None)
    bar.phase("evaluate")
    bar.evaluating(1, 6)
    assert [(task.description, task.total) for task in progress.tasks] == [
        ("heal", 1000),
        ("evaluate", 6),
    ]
