"""How fast the log is, beside what the same servers can do at all.

Absolute figures drift by a factor of 2 to 10 on shared machines, so nearly every target is a ratio
inside one run: first the machine's own limits, then a yardstick (the plainest durable inserter that
a good engineer would write), then the project, in alternating rounds. Run `python -m benchmarks`.

Files, in reading order: `__main__` (command line), `measure` (figures, targets, rounds), `cpu`
(CPU seconds of client and servers), `servers` (a fresh database for each case), `limits`,
`yardstick`, `project` (the only file that knows how the library is opened), `load` and `follow`
(writers and subscribers), `child` (the second process), one file per group of cases (`append`,
`tokens`, `sustained`, `context`, `fanout`, `storage`), `machine` and `report`.
"""
