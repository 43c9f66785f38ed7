"""Ray Serve deployments, ingress, settings and metrics."""
