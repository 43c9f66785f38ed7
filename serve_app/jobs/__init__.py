"""Jobs from submission to end: the registry on disk, attempts and their leases, slots."""
