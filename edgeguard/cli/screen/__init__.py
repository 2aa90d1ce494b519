"""What people look at, a module for each thing shown. Built on rich; imported when there is something to show."""
