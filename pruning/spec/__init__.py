"""What to prune and how, as plain data: the whole input of a run, checked when it is made."""

from pruning.sleb import SettingRefused


class InvalidSpec(SettingRefused):
    """A setting is out of range."""


class TargetUnreachable(SettingRefused):
    """No number of removals reaches the target."""


def refused(param: str, value: object, expected: str, shown: str | None = None) -> InvalidSpec:
    """The error for a value of the setting ``param``, which may be ``shown`` by another name."""
    return InvalidSpec(param, f"{shown or param}={value}: expected {expected}")
