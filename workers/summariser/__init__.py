"""Summaries by a model behind an HTTP API: what it is given, and what of its answer is believed.

    quoting           the conversation as quoted data, one JSON document in each line
    prompts           what the model is asked, in files with a version
    client            one request of either of OpenAI's APIs: deadline, size, typed failures
    answers           what must be true of an answer before its text is used
    patience          the same request again, when that can help
    map_reduce        material larger than the model's window, in parts
    model_summarizer  all of that in a row: a `Summarizer`
    breaker, budget   leaving a broken endpoint alone, and the hour's limit of tokens
    guarded           a summarizer behind both, and `summarizer_of` the settings

Nothing here reads or writes a log. What goes wrong is a `SummaryFailed`.
"""
