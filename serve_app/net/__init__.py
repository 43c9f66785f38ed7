"""The network guard: which addresses are allowed, and connections to those only."""
