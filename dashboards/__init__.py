"""The Grafana dashboards as Python; ``python -m dashboards`` writes them as JSON.

Uses only the names of the service's metrics, and imports nothing of it.
"""
