"""Requests to addresses that strangers name: which are allowed, and connections to those only."""
