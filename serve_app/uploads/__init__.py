"""Files that callers upload: stored for a while, for the one key that sent them."""
