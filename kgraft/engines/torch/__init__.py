"""Both engines on torch, in the order in which a step meets them.

`eager_steps` are Keras' own. `native_steps` take these around native networks: functional models
as lists of calls (`network`), of native layers where there are some (`layers`). `traced_steps`
begin as native steps; after a while a native step is traced, i.e. written down operation by
operation (`trace`), and the trace played, on a GPU as one CUDA graph (`cuda_graph`), each held
against the way before it (`closeness`). Both compare what they have taken for granted with what is
(`settings`). `fused_sgd` moves all variables at once, in any of them. A step is that of a model by
itself, whatever other processes train (`alone`).
"""
