"""Avatars that are kept for later jobs with the same video."""
