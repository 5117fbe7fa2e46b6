"""Runs HyperQueue jobs on order, for `suanli-testnet bench overhead` and `market`.

A local server and one worker. For each line `N PAUSE` on standard input, N jobs
run one after the other, each after a pause in milliseconds; the answer is one
line, a JSON list of N times in milliseconds, from the call that submits a job
until the job's process has said that it runs. For a line `rate N`, one job of N tasks
runs, and the answer is how many seconds it took until all had said so. The first line
out is the version.

The process says so by writing into a named pipe that this script waits on:
HyperQueue's own way to wait for a job asks once a second.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version

from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig


def submit_to_ran_ms(client, pipe, path, pause_ms):
    time.sleep(pause_ms / 1e3)
    job = Job()
    job.program(["/bin/sh", "-c", f"echo >{path}"], stdout=None, stderr=None)
    begin = time.perf_counter()
    client.submit(job)
    os.read(pipe, 1)
    return (time.perf_counter() - begin) * 1e3


def seconds_of(client, pipe, path, tasks):
    job = Job()
    for _ in range(tasks):
        job.program(["/bin/sh", "-c", f"echo >{path}"], stdout=None, stderr=None)
    begin = time.perf_counter()
    client.submit(job)
    ran = 0
    while ran < tasks:
        ran += len(os.read(pipe, 4096))
    return time.perf_counter() - begin


def main():
    # HyperQueue talks on standard output; answers go where it can't get at.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ran")
        os.mkfifo(path)
        # Also open for writing, so that a read waits instead of seeing an end.
        pipe = os.open(path, os.O_RDWR)
        with LocalCluster() as cluster:
            cluster.start_worker(WorkerConfig(cores=2))
            client = cluster.client()
            print(version("hyperqueue"), file=answers, flush=True)
            for line in sys.stdin:
                if line.startswith("rate"):
                    seconds = seconds_of(client, pipe, path, int(line.split()[1]))
                    print(json.dumps(seconds), file=answers, flush=True)
                    continue
                count, pause_ms = map(int, line.split())
                times = [submit_to_ran_ms(client, pipe, path, pause_ms) for _ in range(count)]
                print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    main()
