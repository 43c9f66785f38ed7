"""The sources of videos and audio: untrusted addresses, and local files."""
