"""Videos that can be watched while they are made: HLS playlists over fragments on this node."""
