"""What one program of a kernel holds on chip, and how full a GPU is with it: for GPUs that need not be there.

Nothing here imports torch but `compiling`, which runs in a process of its own.
"""
