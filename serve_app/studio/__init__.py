"""The page at `/`: files that a browser loads, and the routes that send them."""
