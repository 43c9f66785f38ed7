"""An engine without weights: the mouth's own pixels are warped to the sound."""
