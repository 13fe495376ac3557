"""The Grafana dashboards as Python; ``python -m dashboards`` writes them as JSON.

Knows the service by the names of its metrics alone.
"""
