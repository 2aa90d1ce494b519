"""What scores are worth: against the truth, and against another model's."""
