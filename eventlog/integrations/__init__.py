"""What other programs wrote and what they read: one module per foreign format or framework.

Transcripts of coding agents come in (`transcripts` is the interface, `claude_code` and `codex` read
the files), the log's own JSON Lines go out and in again (`export`). `jsonl` and `assembly` are what
the readers share. A framework's adapter imports that framework only when it is used: importing
`eventlog` never needs any of them.
"""
