"""The runtime of decoders: prefill through the model, then steps of one token as programs, in one CUDA graph each."""
