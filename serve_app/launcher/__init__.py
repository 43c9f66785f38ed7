"""What happens before Ray starts: configuration and machine are checked, Ray is set up."""
