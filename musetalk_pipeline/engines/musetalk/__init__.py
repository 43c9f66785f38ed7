"""The MuseTalk engine: faces drawn by the networks, speech encoded by Whisper."""
