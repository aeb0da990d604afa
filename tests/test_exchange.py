"""Sums over contexts and workers: exact, in any order of arrival; messages; who is sent what."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_cases import in_job
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import exchange as exchanges


class NoStore:
    """A KVStore for workers that exchange nothing."""

    def __init__(self, rank=0, num_workers=1):
        self.rank, self.num_workers = rank, num_workers

    def init(self, *_):
        pass

    _barrier = set_gradient_compression = init


def workers(count, contexts=1, threshold=None):
    return [exchanges.Workers(NoStore(rank, count), [mx.cpu(number) for number in range(contexts)], threshold)
            for rank in range(count)]


def summed(vectors, order, threshold=None):
    """The sum of a vector of each worker, when the server gets them in an order."""
    sent, dtype = [], vectors[0].dtype
    joined = workers(len(vectors), threshold=threshold)
    for exchange, vector in zip(joined, vectors):
        gradient = mx.nd.array(vector, dtype=dtype)
        exchange.begin([gradient])
        exchange._put([gradient], mx.nd.zeros(len(vectors) * 72), exchange._sent[0])
        sent.append(exchange._sent[0].asnumpy())
        assert sent[-1].dtype == np.float32  # all that is safe on MXNet's server
    total = sent[order[0]]
    for rank in order[1:]:
        total = total + sent[rank]
    result = mx.nd.zeros(len(vectors[0]), dtype=dtype)
    joined[0]._take(mx.nd.array(total), [result])
    return result.asnumpy()


@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 4))
def test_every_row_of_a_batch_is_in_one_part(batch_size, count, contexts):
    parts = [part for exchange in workers(count, contexts) for part in exchange.rows(batch_size)]
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])] and parts[-1][1] == batch_size
    sizes = [end - begin for begin, end in parts]
    assert max(sizes) - min(sizes) <= 1
    if batch_size < count * contexts:
        with pytest.raises(ValueError, match=f"batch_size: got {batch_size}, needs at least {count * contexts}"):
            workers(count, contexts)[0].check(batch_size)
    else:
        workers(count, contexts)[0].check(batch_size)
        assert min(sizes) >= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.integers(2, 9), st.integers(0, 10 ** 6), st.integers(-30, 6), st.data())
def test_a_sum_does_not_depend_on_the_order_of_arrival(dtype, count, seed, size, data):
    random = np.random.RandomState(seed)
    vectors = [(random.uniform(-1, 1, 50) * 2.0 ** random.uniform(-20, 0, 50) * 2.0 ** size / count).astype(dtype)
               for _ in range(count)]
    found = summed(vectors, range(count))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, summed(vectors, data.draw(st.permutations(range(count)))))
    true = np.sum(np.array(vectors, np.longdouble), axis=0)
    one_rounding = {"float32": 2.0 ** -24, "float64": 2.0 ** -52}[dtype] * np.abs(true)
    # What the finest integers leave out: of float32 from the second on, of float64 from the third on.
    left_out = count * 2.0 ** (-18 - (25 - (count - 1).bit_length()) * {"float32": 1, "float64": 2}[dtype])
    if dtype == "float32" and count == 2:
        left_out = 0
    assert (np.abs(found - true) <= one_rounding + left_out).all()


def test_plain_sums_depend_on_the_order_of_arrival():
    vectors = np.random.RandomState(0).randn(3, 1000).astype(np.float32)
    sums = {((vectors[a] + vectors[b]) + vectors[c]).tobytes() for a, b, c in itertools.permutations(range(3))}
    assert len(sums) == 3
    assert len({summed(list(vectors), order).tobytes() for order in itertools.permutations(range(3))}) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("large", [2.0 ** 8 + 2.0 ** -15, 3e4 / 7, 1e20, 1e30, -1e30])
def test_a_sum_beyond_the_exact_ones_is_rounded(dtype, large):
    vectors = [np.array([large, 1, -large], dtype) for _ in range(3)]
    np.testing.assert_allclose(summed(vectors, range(3)), 3 * vectors[0], rtol=3e-7)


def test_numbers_that_are_not_finite_stay_so():
    with np.errstate(invalid="ignore"):
        for vectors in [[np.array([value, 1.0]), np.ones(2), np.ones(2)] for value in (np.inf, -np.inf, np.nan)]:
            found = summed(vectors, range(3))
            assert not np.isfinite(found[0]) and found[1] == 3


@given(st.sampled_from([2.0 ** -12, 0.01, 1e-9, 3.0]), st.integers(2, 5), st.data())
def test_a_compressed_sum_is_exact(threshold, count, data):
    """MXNet sends 1, 0 or -1 for each number of a vector that has been divided by the threshold."""
    counts = data.draw(st.lists(st.lists(st.integers(-1, 1), min_size=4, max_size=4), min_size=count, max_size=count))
    found = summed([(np.array(row) * threshold).astype(np.float32) for row in counts], range(count), threshold)
    np.testing.assert_allclose(found, np.sum(counts, axis=0) * threshold, rtol=3e-7)


@given(st.integers(1, 5), st.integers(1, 20), st.data())
def test_messages_come_through_sums(count, length, data):
    texts = data.draw(st.lists(st.binary(max_size=length), min_size=count, max_size=count))
    joined = workers(count)
    bits = sum(exchange._bits(text, length) for exchange, text in zip(joined, texts))
    assert set(np.unique(bits)) <= {0, 1}
    assert joined[0]._messages(bits, length) == [text.ljust(length, b"\0") for text in texts]


@pytest.mark.parametrize("kvstore", ["local", "device"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_contexts_sum_in_one_order(kvstore, dtype, count):
    """The bits of MXNet's local sum are those of additions in the order of the contexts, each time."""
    vectors = np.random.RandomState(count).randn(count, 5000).astype(dtype)
    exchange = exchanges.Contexts([mx.cpu(number) for number in range(count)], kvstore)
    gradients = [[mx.nd.array(vector[:99], context, dtype), mx.nd.array(vector[99:].reshape(-1, 29), context, dtype)]
                 for vector, context in zip(vectors, exchange.contexts)]
    exchange.begin(gradients[0])
    if kvstore == "local":  # four by four
        true = vectors[0]
        for first in range(1, count, 4):
            part = vectors[first]
            for vector in vectors[first + 1:first + 4]:
                part = part + vector
            true = true + part
    else:
        true = vectors[0]
        for vector in vectors[1:]:
            true = true + vector
    for _ in range(5):
        for of_context, vector in zip(gradients, vectors):
            of_context[0][:], of_context[1][:] = vector[:99], vector[99:].reshape(-1, 29)
        assert exchange.round(gradients, b"a note") == [b"a note"]
        for of_context in gradients:
            np.testing.assert_array_equal(np.concatenate([gradient.asnumpy().ravel() for gradient in of_context]), true)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, count, servers", [("float32", 3, 1), ("float32", 2, 2), ("float64", 3, 2), ("float64", 2, 3)])
def test_workers_have_the_same_bits_in_every_order_of_arrival(dtype, count, servers):
    results = in_job("sums", (dtype, 5000), count, servers)
    true = np.sum([vector.astype(np.float64) for vector, _, _ in results], axis=0)
    assert len({bits for _, found, _ in results for bits in found}) == 1
    np.testing.assert_allclose(np.frombuffer(results[0][1][0], dtype), true, rtol={"float32": 3e-7, "float64": 1e-13}[dtype],
                               atol={"float32": 1e-11, "float64": 1e-18}[dtype])
    if count == 3 and servers == 1:  # MXNet alone: the test's delays do change the order
        assert len({bits for _, _, plain in results for bits in plain}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("count, servers", [(1, 1), (3, 2), (2, 3)])
def test_messages_come_through_servers(count, servers):
    mine = [b"", "größer".encode(), bytes(range(1, 256)) * 20][-count:]
    content = np.random.RandomState(0).bytes(100001)
    for gathered, got, notes in in_job("messages", (mine, content), count, servers):
        assert gathered == [message[:4096] for message in mine] and got == content
        assert notes == [message[:8].ljust(8, b"\0") for message in mine]


@pytest.mark.slow
@pytest.mark.parametrize("threshold, count", [(None, 3), (0.01, 2)])  # compressed messages of 2 workers have other parts
def test_a_worker_that_leaves_is_heard(threshold, count):
    heard = "worker 1: the disk is full", True
    assert in_job("leave", threshold, count, 3) == [heard, True, heard][:count]


@pytest.mark.slow
def test_all_servers_get_a_part():
    size = 4 * 10 ** 7  # bytes
    for grown in in_job("parts", size // 4, 2, 2):
        assert min(grown) > size / 2 and max(grown) < 1.3 * min(grown), grown
    [grown] = in_job("parts", size // 4, 1, 2, MXNET_KVSTORE_BIGARRAY_BOUND="100000000")  # a user's own
    assert min(grown) < size / 10 and max(grown) > size, grown


@pytest.mark.slow
def test_rounds_keep_no_memory():
    for before, after in in_job("memory", 2000, 3, 2):
        for then, now in zip(before, after):
            assert now - then < 4e6, (then, now)  # 2 kB a round; the array has 80 kB
