"""Where videos and audio come from: addresses nobody vouches for, and local files."""
