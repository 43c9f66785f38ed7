"""A container that runs one job: the variables of its environment, and its end by a signal."""
