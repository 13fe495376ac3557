"""``python -m tools.docs.rest [FILE]``: write the page of all routes, from the app itself."""

import sys
from ipaddress import IPv4Address
from pathlib import Path

from app.config import ServeSettings
from app.main import create_app
from tools.docs.rest_tables import markdown

_TARGET = Path(__file__).parents[1] / "docs" / "rest.md"
_ELSEWHERE = IPv4Address("192.0.2.1")  # of a service that has to ask for keys
_PAGE = """\
<!-- Made by `make docs` from the routes and their schemas: change it there. -->

# REST

What `/openapi.json` says, to read. `/docs` of a running service has the same, to try out. A field
that is not listed is refused, but on `/v1`, where some are ignored as OpenAI's API has them.
Where a scope is named, a [key](guides/keys.md) with any of these will do; a service that asks for
no keys answers without. Guides: [jobs](guides/jobs.md),
[generating and comparing](guides/serve.md).

{routes}"""


def page() -> str:
    settings = ServeSettings(data_dir=Path("/nonexistent"), host=_ELSEWHERE)
    app = create_app(settings, redis_url="unix:///none")
    return _PAGE.format(routes=markdown(app.openapi()))


def main(target: Path) -> None:
    target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _TARGET)
