"""What follows a forward: the next tokens, their log-probabilities, their text, their stream."""
