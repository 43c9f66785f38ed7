"""Where results go: B2, a local folder, an address to PUT to; how long local ones stay."""
