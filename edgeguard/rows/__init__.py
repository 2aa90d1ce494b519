"""Records in, result rows out: one schema, its readers and its writers."""
