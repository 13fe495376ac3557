"""``python -m dashboards [DIR]``: write every dashboard as a file that Grafana reads."""

import sys
from pathlib import Path

from dashboards.files import rendered

_TARGET = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards"


def main(target: Path) -> None:
    for name, text in rendered().items():
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _TARGET)
