"""Lip-sync video generation, without Ray: media, faces, audio, networks, blending, encoding."""
