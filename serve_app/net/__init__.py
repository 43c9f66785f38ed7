"""The network guard: which addresses may be asked, and connections to those alone."""
