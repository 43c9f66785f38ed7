"""What only a single process can do: overlap the stages and keep decoded frames."""
