"""Arithmetic on sound."""
