"""Compares this pipeline with what the reference computed, stage by stage and as a whole.

python -m tests.parity --golden DIR --models DIR --frames DIR --landmarks NPZ --wav WAV
"""
