"""Published checkpoints: written aside, verified, made visible by one rename."""
