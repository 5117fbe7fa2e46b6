# The least that some work can cost on some machines, by linear programming.
#
#     {"machines": [{"capacity": W, "price": P}, …],      work of an interval, price of a unit of work
#      "work": [{"from": A, "until": B, "amount": W}, …]}  ──stdin──▶  {"cost": C, "solver": "…"}
#
# Variables: how much of each kind of work is done in each interval, and how much each
# machine does in each interval. Work is as divisible as water here, so no schedule of
# whole jobs costs less.

import json
import sys

import numpy
import scipy
from scipy.optimize import linprog
from scipy.sparse import coo_matrix


def least_cost(trace):
    machines, work = trace["machines"], trace["work"]
    intervals = max((kind["until"] + 1 for kind in work), default=0)
    if intervals == 0:
        return 0.0
    spans = [range(kind["from"], kind["until"] + 1) for kind in work]
    done = sum(map(len, spans))
    count = done + len(machines) * intervals
    # One row for each kind of work: all of it is done. One for each interval: what is
    # done in it is done by machines.
    rows, columns, values = [], [], []
    column = 0
    for row, span in enumerate(spans):
        for interval in span:
            rows += [row, len(work) + interval]
            columns += [column, column]
            values += [1.0, 1.0]
            column += 1
    for number in range(len(machines)):
        for interval in range(intervals):
            rows.append(len(work) + interval)
            columns.append(done + number * intervals + interval)
            values.append(-1.0)
    shape = (len(work) + intervals, count)
    amounts = [kind["amount"] for kind in work] + [0.0] * intervals
    price = numpy.zeros(count)
    most = numpy.full(count, numpy.inf)
    for number, machine in enumerate(machines):
        of_machine = slice(done + number * intervals, done + (number + 1) * intervals)
        price[of_machine] = machine["price"]
        most[of_machine] = machine["capacity"]
    result = linprog(
        price,
        A_eq=coo_matrix((values, (rows, columns)), shape=shape).tocsr(),
        b_eq=amounts,
        bounds=numpy.stack([numpy.zeros(count), most], axis=1),
        method="highs",
    )
    if not result.success:
        raise SystemExit(result.message)
    return result.fun


cost = least_cost(json.load(sys.stdin))
print(json.dumps({"cost": cost, "solver": f"HiGHS in scipy {scipy.__version__}"}))
