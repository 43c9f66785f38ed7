"""What a job used and cost, from the costs of its calls."""
