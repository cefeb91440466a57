"""Removing what a session said, for good."""
