"""Views of the log, built from it and rebuilt at will."""
