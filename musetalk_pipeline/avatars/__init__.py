"""What an avatar depends on, and its blocks in files."""
