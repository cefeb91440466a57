"""The processes around the log, and the command line."""
