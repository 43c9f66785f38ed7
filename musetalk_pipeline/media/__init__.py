"""Containers, frames and sound tracks: probing, decoding, encoding and joining."""
