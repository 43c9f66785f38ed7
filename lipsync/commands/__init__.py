"""The commands of `lipsync`, one file each. They import what they need when they run."""
