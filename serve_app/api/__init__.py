"""HTTP: the ingress, its routes, and how jobs are told of in answers and events."""
