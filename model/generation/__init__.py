"""From prompts to continuations: requests, continuous batching, `generate`, beam search, `TextGenerator`.

One step of `TextGenerator.stream` on the CPU, from ids to text, in reading order:

1. ``generation/text_generator.py`` loops over steps.
2. ``generation/engine.py`` collects the new ids of all sequences, and samples from the logits of their last ones.
3. ``backends/cpu/decoder.py`` runs the forward pass over this ragged batch.
4. ``layers/rope.py`` computes the cosines and sines of the positions.
5. ``backends/cpu/native.py`` runs the linear layers by native kernels.
6. ``backends/cpu/attention.py`` attends over the cache.
7. ``cache/kv_cache.py`` holds keys and values.
8. ``generation/sampler_dispatch.py`` applies the options of each request and draws its next id.
9. ``generation/text_request.py`` decodes it to text and looks for stop strings.

Other folders: ``backends`` has the CUDA graph and what chooses a backend, ``sampling`` the options and the sampler of
other devices.
"""
