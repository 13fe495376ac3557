"""Domain objects as response bodies and events."""
