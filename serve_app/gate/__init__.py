"""The gate: access control and limits, in Serve's HTTP proxy and in front of the ingress."""
