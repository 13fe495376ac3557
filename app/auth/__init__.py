"""Authentication: API keys, their scopes and limits."""
