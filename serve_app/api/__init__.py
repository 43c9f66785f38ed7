"""The HTTP API: what an ingress is composed of, its routes, and jobs as answers and events."""
