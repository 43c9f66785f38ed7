"""Which published files the networks need; fetching and verifying them."""
