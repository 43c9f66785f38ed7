"""Arithmetic on pictures: output geometry, colour, crops, masks, resampling and blending."""
