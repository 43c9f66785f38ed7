"""`make run`: start the application, do one job, show its result, stop."""
