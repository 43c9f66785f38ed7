"""How long a job will take and what it will cost, learnt from the receipts of finished jobs."""
