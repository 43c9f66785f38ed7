"""The job queue that workers poll: today its client; the service itself is not here yet."""
