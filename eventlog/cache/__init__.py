"""Copies of what sessions add up to, in Redis: disposable, written only forwards."""
