"""PTX to C++: what CUDA's own compiler makes of the kernels, run on the CPU as a second judge of them.

NVRTC's PTX has every instruction that ``ptxas`` turns into machine code: addresses, widths of accesses, where values
are flushed to zero, and what the optimiser made of the source. ``library`` makes a library of it. ``ptx.h`` has the
meaning of each operation; ``ptx.cpp`` runs the threads, by ``shim.h``, and judges their accesses: misaligned ones,
races in shared memory, bytes that nothing has written. Not judged are ``ptxas``, cuBLAS, and the order in which blocks
see each other's writes to the GPU's memory.

Registers become variables that hold bits, and each instruction a statement. An instruction without a form
(``instructions``) is an error that names it.
"""
