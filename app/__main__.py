"""``python -m app`` is ``sleb``."""

from app.cli.main import main

if __name__ == "__main__":
    main()
