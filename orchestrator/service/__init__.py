"""The HTTP service: the protocol of workers and the job API of clients, over the job store."""
