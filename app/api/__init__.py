"""The HTTP API: routes, their schemas and formats, middleware, errors."""
