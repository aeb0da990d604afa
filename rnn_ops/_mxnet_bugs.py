"""Bugs of MXNet 1.9.1, its last release, and what we do about each. Comments elsewhere refer to these numbers.

Each entry has the symptom, then after an arrow the files and names of our workaround.

On import

1. MXNet looks for ``numpy.bool``, which NumPy 1.24 has dropped: the import fails. We lend it for the time of the import. →
   rnn_ops/_mxnet_import.py: exec_module
2. Some values of OMP_NUM_THREADS, MXNET_CPU_WORKER_NTHREADS and MXNET_ENGINE_TYPE end the process or make it wait for ever. We
   look at them first and raise an ImportError. → rnn_ops/_mxnet_import.py: why_not
3. The wheels for CPUs and for GPUs are different packages that install the same module, and pip installs one over the other. We
   warn. → rnn_ops/_mxnet.py: installed_wheels

The native operator (mx.library, lib_api.h)

4. A native operator is not told its ``req``, so it cannot know whether a gradient is to be written or to be added to the one
   that is there. ``grad_req="add"`` then overwrites, without an error. And whatever the grad_req, where eight or more uses of
   one array are summed (MXNET_EXEC_INPLACE_GRAD_SUM_CAP) MXNet asks the operator to add. We put an operator of MXNet's own
   before each argument, one that is not merged with others. → rnn_ops/operators/native/guard.py: _guarded_symbol,
   guarded_ndarray; rnn_ops/operators/native/front.cc: Notes
5. Where not even the number of dimensions of an argument is known, ``infer_shape`` in c_api.cc counts it as -1 numbers and
   writes 4 bytes behind the end of its buffer. We fix the number of dimensions before MXNet infers the operator. →
   rnn_ops/operators/native/guard.py: _rank_of, _guarded_symbol; rnn_ops/operators/native/calls.py: _check_dimensions
6. A node without inputs (``_zeros_without_dtype``) cannot run in the body of foreach, while_loop or cond, where its shape is
   not inferred; and if only its shape is used, it is never written, and a Monitor shows what was in memory. →
   rnn_ops/operators/native/guard.py: _guarded_symbol
7. MXNet infers shapes from the arguments, and then hands over whatever arrays it was given as gradients (``args_grad``,
   ``backward``'s out_grads), or arrays with a 0 among their dimensions, which it takes for unknown. An operator that trusts the
   inferred shapes writes out of bounds. We look at the arrays of each call. → rnn_ops/operators/native/inference.cc: problem;
   rnn_ops/operators/custom.py: _check_same
8. ``lib_api.cc`` keeps every error message, and MXNet attaches all of them to each new error. We have our own implementation of
   the interface. → rnn_ops/operators/native/mxnet_abi.cc: message

CustomOps

9. A script that ends while a CustomOp is in MXNet's queue hangs or aborts. We wait for the queue at exit. →
   rnn_ops/operators/custom.py: waitall
10. A CustomOpProp is made with all attributes of a node as keyword arguments, MXNet's own notes (``__subgraph_name__``) among
    them, and an exception in it is a segmentation fault. Ours takes them all and complains later. →
    rnn_ops/operators/custom.py: RecurrenceProp
11. MXNet keeps one ``declare_backward_dependency`` for all custom operators, the latest. Another operator's backward pass then
    gets arrays without storage ("unknown storage type: -1"). Ours declares everything. → rnn_ops/operators/custom.py:
    declare_backward_dependency

Graphs and Gluon

12. In a hybridized block, ``a + b`` of two parameters gives ``b`` a wrong gradient where its grad_req is "add" or where that of
    ``a`` is not "write". We use broadcast_add. → rnn_ops/layer_graph.py: hidden_matrices
13. In a hybridized block, the transpose of a parameter whose gradient is row-sparse is a segmentation fault, in MXNet's own
    layers too. We put a reshape between. → rnn_ops/layer_graph.py: with_dense_gradients
14. ``Embedding`` fails if somebody asks for the gradient of its tokens. → rnn_ops/operators/lookup.py: _embedded
15. SequenceMask, SequenceLast and SequenceReverse read and write out of bounds if a length is not in [0, T]. We make every
    length one of these first. → rnn_ops/layer_graph.py: within
16. To CachedOp, ``cpu_shared`` and ``cpu`` are different devices, so a batch from a DataLoader's worker does not go together
    with parameters. → rnn_ops/gluon.py: _in_cpu
17. Mixed precision (AMP) replaces the functions in ``mx.sym``, and the new ones cannot call an operator without inputs. →
    rnn_ops/operators/native/guard.py: _mxnets
18. backward frees only the nodes on the way from the loss. The rest stay, and at the next backward lead to freed ones, which is
    an MXNetError. We make one node of a layer. → rnn_ops/operators/one_node.py: OneNode
19. ``mx.gluon.rnn.RNN`` begins with states of the dtype of its inputs, which for tokens is int32. → rnn_ops/gluon.py:
    begin_state
20. ``mx.library.load`` makes every function in mx.nd and mx.sym anew, which takes 0.4 s. We load the library one level below. →
    rnn_ops/operators/native/load.py: _load

GPUs

21. The GPU wheels hold no PTX and no machine code for compute capability 9.0 and newer: MXNet's own kernels do not run there.
    Arrays stay in ``mx.cpu()``, and each call copies. → rnn_ops/operators/devices.py: Offload

The distributed KVStore (ps-lite). The workarounds are in the workload, python/rnn_ops_timemachine: exchange.py, roles.py, job.py.

- A role that dies, or that does not come, is waited for without end. We watch the heartbeats and the processes.
- The server sums the workers' arrays in the order in which they arrive, so sums of three or more differ from run to run. And it
  may sum float64 in float32: ``multi_precision_`` is not initialised. We send float32 numbers whose sums are exact.
- The threshold of 2bit compression is sent with six decimals. Ours is 1, and the gradients are divided by the true one. An array
  that is initialised before the compression is set has other parts after that.
- After push, pull writes the sum into the array that was pushed, too. A second KVStore in one process hangs. A KVStore takes
  floating-point numbers only.
- An import of MXNet with DMLC_ROLE=server or scheduler does not return until the job ends. We hide the variable from it.
- ``launch.py`` calls ``Thread.isAlive``, which Python 3.9 has dropped, and then leaves the scheduler running.

Bugs that are not in our way: ``mx.gluon.rnn.RNN`` gives the lower ones of several layers wrong gradients in float64 on a CPU;
``FullyConnected`` gives the bias a zero gradient if the weight needs none; in ``contrib.foreach`` in a hybridized block, ``bx +
bh`` in the body gives a wrong gradient.
"""
