"""``python -m app`` is ``sleb``."""

from app.cli import main

if __name__ == "__main__":
    main()
