"""Full text search: one tokenizer for index, query and highlighting."""
