pytest_plugins = ["tests.model_fixtures", "tests.redis_fixtures", "tests.worker_fixtures"]
