"""Packs what a machine with a GPU and no network lacks, and runs the measurements there."""
