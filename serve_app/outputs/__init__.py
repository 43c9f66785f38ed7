"""The stores of results: B2, a local folder with its retention, and HTTP PUT."""
