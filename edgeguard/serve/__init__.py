"""A guard behind HTTP: the routes that moderation stacks already speak, and a page to try it."""
