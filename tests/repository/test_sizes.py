"""tools/sizes.py: limits on the length of files and functions."""

from pathlib import Path

from tools.sizes import MAX_FILE_LINES, MAX_FUNCTION_LINES, complaints

LONG = "def long() -> None:\n" + "    pass\n" * MAX_FUNCTION_LINES
FILLER = "# a comment\n"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_long_function_and_a_long_file_are_reported(tmp_path: Path) -> None:
    write(tmp_path, "app/long.py", FILLER + LONG)
    write(tmp_path, "pruning/small.py", "x = 1\n")
    write(tmp_path, "pruning/long.py", FILLER * (MAX_FILE_LINES + 1))
    found = list(complaints(tmp_path, {}))
    assert len(found) == 2
    assert found[0].startswith("app/long.py:2: long has 41 lines")
    assert found[1].startswith("pruning/long.py: 401 lines")


def test_the_signature_of_a_command_does_not_count(tmp_path: Path) -> None:
    options = "".join(f"    option_{number}: int,\n" for number in range(MAX_FUNCTION_LINES))
    write(tmp_path, "app/cli/command.py", f"{FILLER}def command(\n{options}) -> None:\n    pass\n")
    assert not list(complaints(tmp_path, {}))


def test_an_exception_is_accepted_and_an_idle_one_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "app/long.py", FILLER + LONG)
    reason = "a reason"
    assert not list(complaints(tmp_path, {"app/long.py:long": reason}))
    [idle] = complaints(tmp_path, {"app/long.py:long": reason, "app/gone.py": reason})
    assert idle.startswith("app/gone.py: ")
