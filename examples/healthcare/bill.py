"""What this job cost, by the receipts of a node, beside owning and renting.

    python3 bill.py table DATA_DIR PRICES.json    # all runs of it that the node knows
    python3 bill.py receipt DATA_DIR UNIT         # the receipt of a unit of its first run

DATA_DIR is the client's; its daemon has to run. PRICES.json is what `suanli job cost
--prices FILE --json` printed: an hour of an owned or rented machine is taken from it, and
the time from the receipts, since a machine that is as fast needs as long.
"""

import json
import sys
import urllib.request
from pathlib import Path


class Node:
    """Asks a daemon over its HTTP API."""

    def __init__(self, folder):
        self.address = json.loads((folder / "api.json").read_text())["address"]
        self.token = (folder / "api.token").read_text().strip()
        # A proxy that the environment names has no way to this machine's loopback.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path):
        request = urllib.request.Request(f"http://{self.address}/v1/{path}")
        request.add_header("Authorization", f"Bearer {self.token}")
        with self.opener.open(request) as answer:
            return json.load(answer)

    def runs(self):
        """Units of each run of this job, the first run first."""
        jobs = [
            job
            for job in self.get("jobs")
            if job["name"] == "healthcare" and job["state"] == "done"
        ]
        for job in sorted(jobs, key=lambda job: job["submitted_ms"]):
            yield self.get(f"jobs/{job['job']}/units?limit=1000")


class Bill:
    """What the receipts of a run say, together."""

    def __init__(self, receipts):
        self.regions = sorted({receipt["region"] for receipt in receipts})
        self.micros = sum(micros(receipt["amount"]) for receipt in receipts)
        self.seconds = sum(dict(receipt["usage"]).get("gpu.ms", 0) for receipt in receipts) / 1000

    def hour(self):
        return self.micros * 3600 / self.seconds / 1e6


def main():
    match sys.argv[1:]:
        case ["table", folder, prices]:
            print(table(Node(Path(folder)), json.loads(Path(prices).read_text())))
        case ["receipt", folder, unit]:
            print(next(Node(Path(folder)).runs())[int(unit)]["receipt"])
        case _:
            sys.exit("usage: bill.py table DATA_DIR PRICES.json | bill.py receipt DATA_DIR UNIT")


def table(node, prices):
    lines = []
    for units in node.runs():
        bill = Bill([node.get(f"receipts/{unit['receipt']}") for unit in units])
        lines.append((", ".join(bill.regions), bill.hour(), bill.seconds))
    first, first_hour, first_seconds = lines[0]
    for other in prices["elsewhere"]:
        hour = micros(other["price"]) * 3600 / (other["took_ms"] / 1000) / 1e6
        lines.append((f"{other['how']}: {other['name']}", hour, first_seconds))
    against, cost = f"AGAINST {first}", f"{prices['unit']} IN ALL"
    text = f"{'WHERE':26}{'AN HOUR':>9}{against:>16}{'TIME':>8}{cost:>13}"
    for name, hour, seconds in lines:
        against = f"{hour / first_hour:.2f} times" if name != first else ""
        text += f"\n{name:26}{hour:9.2f}{against:>16}{seconds:6.1f} s{hour * seconds / 3600:13.6f}"
    return text


def micros(amount):
    """An amount as the API writes it, in millionths."""
    whole, _, rest = amount.partition(".")
    return int(whole) * 1_000_000 + int(rest.ljust(6, "0"))


if __name__ == "__main__":
    main()
