"""What to prune and how, as plain data: the whole input of a run, checked when it is made."""


class InvalidSpec(ValueError):
    """A setting is out of range; ``param`` is its dotted name in the request."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class TargetUnreachable(ValueError):
    """No number of removals reaches the target; ``param`` is the setting that asks for it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
