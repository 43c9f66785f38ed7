"""What an operator sets: the configuration file and the environment."""
