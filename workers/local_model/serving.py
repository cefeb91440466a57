"""The process of the local model: llama.cpp behind OpenAI's API, until whoever started it has gone.

    serving.py PARENT_PID MODEL_FILE ADDRESS_FILE TEMPLATE_FILE WINDOW_TOKENS THREADS

Where it listens, and with which key, it writes into ADDRESS_FILE, all at once, when the model is
loaded. TEMPLATE_FILE says how it is told who said what; empty: in the model's own way. Run by its
path and alone: it imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import xllamacpp

LOOK_SECONDS: Final = 0.5
"""Pause between two looks whether the parent lives; on Linux the kernel tells at once."""
ANSWER_TOKENS_MAX: Final = 512
"""Where an answer is cut that was asked for without a limit: small models may not find an end."""
REPEAT_PENALTY: Final = 1.1
FREQUENCY_PENALTY: Final = 0.05
PENALISED_TOKENS: Final = 256
"""They also say the same again: what is among so many tokens becomes less likely, each time."""
SEED: Final = 7
"""The same question gets the same answer, on the same machine."""


def main(
    parent: int,
    model_file: Path,
    address_file: Path,
    *,
    template: Path | None,
    window_tokens: int,
    threads: int,
) -> NoReturn:
    """Serve until the parent has gone."""
    name = model_file.stem.split(".")[0]
    api_key = secrets.token_urlsafe()
    params = parameters(model_file, template, window_tokens=window_tokens, threads=threads)
    params.model_alias = {name}
    params.api_keys = [api_key]
    server = xllamacpp.Server(params)
    address = {
        "url": server.listening_address,
        "api_key": api_key,
        "model": name,
    }
    unfinished = address_file.with_suffix(".new")
    unfinished.write_text(json.dumps(address), encoding="utf-8")
    unfinished.rename(address_file)
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(0)  # its threads would go on


def parameters(
    model_file: Path, template: Path | None, *, window_tokens: int, threads: int
) -> xllamacpp.CommonParams:
    """One question at a time, on the processor, and no page that shows what was asked."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file)
    params.n_ctx = window_tokens
    params.n_parallel = 1
    params.n_predict = ANSWER_TOKENS_MAX
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = 4
    params.cache_ram_mib = 0
    if template is not None:
        params.chat_template = template.read_text(encoding="utf-8")
    params.sampling.temp = 0.0
    params.sampling.seed = SEED
    params.sampling.penalty_repeat = REPEAT_PENALTY
    params.sampling.penalty_freq = FREQUENCY_PENALTY
    params.sampling.penalty_last_n = PENALISED_TOKENS
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.cors_origins = ""
    params.endpoint_slots = False
    params.endpoint_props = False
    params.ui = False
    return params


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        template=Path(sys.argv[4]) if sys.argv[4] else None,
        window_tokens=int(sys.argv[5]),
        threads=int(sys.argv[6]),
    )
