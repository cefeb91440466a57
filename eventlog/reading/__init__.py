"""Questions to sessions and to the log, answered from the cheapest copy that is not behind."""
