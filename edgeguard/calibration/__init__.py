"""From scores to probabilities that hold, and to decisions."""
