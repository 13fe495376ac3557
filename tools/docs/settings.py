"""``python -m tools.docs.settings [FILE]``: write the page of all settings, from the fields."""

import sys
from pathlib import Path

from app.settings import markdown, settings

_TARGET = Path(__file__).parents[1] / "docs" / "settings.md"
_PAGE = """\
<!-- Made by `make docs` from the fields in the two config.py: change it there. -->

# Settings

From the environment; what is secret better from files in `SLEB_SECRETS_DIR`, as Docker and
Kubernetes mount them. An empty variable counts as unset. A `SLEB_*` variable or file that is not in
this table, or settings that contradict each other, end every command at its start with a message
that names them. (Kubernetes adds variables of its own for a service that is called `sleb`: give the
service another name, or the pod `enableServiceLinks: false`.)

`sleb config` prints what is in effect and where it comes from, without secrets; `sleb doctor` says
whether this machine is up to it.

{table}"""


def page() -> str:
    return _PAGE.format(table=markdown(settings()))


def main(target: Path) -> None:
    target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _TARGET)
