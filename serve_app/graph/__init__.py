"""One job through the stages: the driver, the deployments, a job's files on each node."""
