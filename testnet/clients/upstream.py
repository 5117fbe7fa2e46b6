"""A llama.cpp server with one model, for conversations or for embeddings.

usage: upstream.py FILE ADDRESS_FILE [--embed]

It writes its address into ADDRESS_FILE once it listens, and runs until it is ended.
"""

import os
import sys
import time

import xllamacpp


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx = 1024
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    if "--embed" in sys.argv:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(parameters)
    beside = sys.argv[2] + ".new"
    with open(beside, "w") as file:
        file.write(server.listening_address)
    os.rename(beside, sys.argv[2])
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
