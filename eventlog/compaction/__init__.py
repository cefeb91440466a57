"""Compaction: a summary takes the place of the older part of a context. The events stay.

    tokens, images, windows    how much a model reads, and how much it can
    policy                     when a session is due, and what is kept word for word
    measure                    the size of a session's context
    selection                  what exactly a summary would stand for
    summarizer                 what whoever writes summaries is given, and gives back
    committing                 checking a summary, and appending it: one for each range
    compaction                 all of that in a row

Nothing here talks to a model: a `Summarizer` is handed in. `workers/summariser` has one.
"""
