"""The values of the fixed protocol: requests, outcomes and error codes."""
