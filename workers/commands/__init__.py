"""The commands of the command line, one module for each subject.

`workers/cli.py` lists them; each is imported when it is called. `opening` opens the log for them,
`arguments` holds what they take, `look` how messages look, `conversation` and `live` print them.
"""
