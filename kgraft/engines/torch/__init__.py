"""The compiled engine on torch, in the order in which a step meets it.

`traced_steps` takes a model's steps; its first ones, and all of a model that is not traced, are
those of `native_steps`: Keras' own step around networks that are lists of native calls
(`network`), one a layer (`layers`), as long as nobody sets anything otherwise (`settings`). `trace`
writes such a step down operation by operation, to be played back; `cuda_graph` makes one launch of
a trace. `fused_sgd` moves all variables at once, in any of them.
"""
