"""What one program of a kernel holds on chip, and how full a GPU is with it: for GPUs that need not be there.

`sm_trace` and `sm_numbers` hold what a GPU that is there was seen to do. Nothing here imports torch but `compiling`,
which runs in a process of its own, and what `trace` measures with: `launches` and the two modules of probes.
"""
