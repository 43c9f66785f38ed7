"""How many replicas run: seconds of waiting work decide, and Serve's controller starts them."""
