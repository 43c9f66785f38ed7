"""The command line `lipsync`: one door to everything that the project does."""

__version__ = "0.1.0"
