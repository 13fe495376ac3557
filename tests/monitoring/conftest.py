"""The API in this process, as the tests of its routes have it."""

from tests.support.api_fixtures import client, data_dir, settings

__all__ = ["client", "data_dir", "settings"]
