"""The life of jobs: the registry on disk, attempts and their leases, slots."""
