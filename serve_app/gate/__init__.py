"""What a request passes in Serve's HTTP proxy before it reaches the ingress."""
