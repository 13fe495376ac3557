"""Webhooks: the addresses they may be sent to, their signatures, and their retries."""
