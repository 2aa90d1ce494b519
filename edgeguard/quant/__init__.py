"""What quantization does to a guard's scores: variants of a model, their scores, a report, a page."""
