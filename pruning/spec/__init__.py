"""What to prune and how, as plain data: the whole input of a run, checked when it is made."""

from pruning.sleb import SettingRefused


class InvalidSpec(SettingRefused):
    """A setting is out of range."""


class TargetUnreachable(SettingRefused):
    """No number of removals reaches the target."""
