"""The fixtures of the API in this process, shared with the tests of the routes."""

from tests.support.api_fixtures import client, data_dir, settings

__all__ = ["client", "data_dir", "settings"]
