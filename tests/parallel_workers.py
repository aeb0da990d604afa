"""The roles of the jobs that `parallel_cases.in_job` starts. A worker calls one of the functions here with MXNet's KVStore."""
import itertools
import os
import pickle
import sys
import time

import numpy as np

from rnn_ops_timemachine import job, roles


def train_all(store, cases):
    """`parallel_cases.trained` for each case: (arguments of `problem`, other arguments, number of contexts)."""
    from parallel_cases import problem, trained
    return [trained(*problem(**shape), _workers(store, 10 * number, contexts), **how)
            for number, (shape, how, contexts) in enumerate(cases)]


def train_compressed(store, argument):
    """`parallel_cases.trained` with a threshold."""
    from parallel_cases import problem, trained
    shape, threshold = argument
    return trained(*problem(**shape), _workers(store, 0, 1, threshold), epochs=3)


def sums(store, argument):
    """Sum the same vectors while the workers come in every order → each order's bits by round and by float32 sums of MXNet."""
    from rnn_ops._mxnet import mx
    dtype, size = argument
    found, plain = [], []
    vector = np.random.RandomState(store.rank).randn(size).astype(dtype)
    exchange = _workers(store, 0, 1)
    exchange.begin([mx.nd.zeros(size, dtype=dtype)])
    store.init(100, mx.nd.zeros(size))
    for order in itertools.permutations(range(store.num_workers)):
        gradient, array = mx.nd.array(vector, dtype=dtype), mx.nd.array(vector)
        for numbers, work in (found, lambda g=gradient: exchange.round([[g]], bytes(8)) and g), \
                (plain, lambda a=array: store.pushpull(100, a, out=a) or a):
            mx.nd.waitall()
            store._barrier()
            time.sleep(0.15 * order[store.rank])
            numbers.append(work().asnumpy().tobytes())
    return vector, found, plain


def messages(store, argument):
    """A gather, a broadcast, and a round's notes."""
    from rnn_ops._mxnet import mx
    mine, content = argument
    exchange = _workers(store, 0, 1)
    gathered = exchange.gather(mine[store.rank])
    got = exchange.broadcast(content if store.rank == 0 else None, len(content))
    exchange.begin([mx.nd.zeros(3)])
    return gathered, got, exchange.round(None, mine[store.rank][:8].ljust(8, b"\0"))


def leave(store, threshold):
    """Worker 1 leaves after the first round; the others hear it in the next, or at the end."""
    from rnn_ops._mxnet import mx
    exchange = _workers(store, 0, 1, threshold)
    gradient = mx.nd.zeros(5000)
    exchange.begin([gradient])
    exchange.round([[gradient]], bytes(8))
    if store.rank == 1:
        exchange.leave("the disk is full")
        return exchange.told
    try:
        exchange.round([[gradient]], bytes(8)) if store.rank == 0 else exchange.close()
    except roles.Left as error:
        return str(error), exchange.told


def memory(store, rounds):
    """Resident bytes of this worker and of the servers, before and after many rounds of 10,000 numbers."""
    from rnn_ops._mxnet import mx
    gradients = [[mx.nd.ones(6000), mx.nd.ones((40, 100))]]
    exchange = _workers(store, 0, 1)
    exchange.begin(gradients[0])
    found = []
    for part in range(2):
        for _ in range(rounds if part else 200):
            for gradient in gradients[0]:
                gradient[:] = 1
            exchange.round(gradients, bytes(8))
        mx.nd.waitall()
        found.append([_resident(pid) for pid in (os.getpid(), *_servers())])
        store._barrier()
    return found


def parts(store, size):
    """The bytes by which each server grows when it sums an array of a size."""
    from rnn_ops._mxnet import mx
    before, exchange, gradient = [_resident(pid) for pid in _servers()], _workers(store, 0, 1), mx.nd.ones(size)
    store._barrier()
    exchange.begin([gradient])
    exchange.round([[gradient]], bytes(8))
    store._barrier()
    return [_resident(pid) - then for pid, then in zip(_servers(), before)]


def _workers(store, first_key, contexts, threshold=None):
    """An exchange of its own keys: MXNet makes each key once, and a process has one store."""
    from rnn_ops._mxnet import mx
    from rnn_ops_timemachine import exchange
    for offset, name in enumerate(("_GATHER", "_BROADCAST", "_ROUND", "_REASON")):
        setattr(exchange, name, first_key + offset)
    return exchange.Workers(store, [mx.cpu(number) for number in range(contexts)], threshold)


def _servers():
    """The ids of this job's servers."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if b"DMLC_ROLE=server" in words and b"DMLC_PS_ROOT_PORT=%s" % os.environ["DMLC_PS_ROOT_PORT"].encode() in words:
            found.append(int(pid))
    return sorted(found)


def _resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _be_a_role(folder, function):
    job.end_with_the_starter()
    place = roles.of_environment()
    if place.role != roles.WORKER:
        roles.serve(place)
        return
    store, watch = roles.join(place, str)
    with open(os.path.join(folder, "argument"), "rb") as file:
        argument = pickle.load(file)
    result = globals()[function](store, argument)
    with open(os.path.join(folder, str(store.rank)), "wb") as file:
        pickle.dump(result, file)
    store._barrier()
    watch.stop()


if __name__ == "__main__":
    _be_a_role(*sys.argv[1:])
