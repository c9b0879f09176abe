"""Retraining: the steps, the Kubeflow pipeline made of them, and where a model goes. Knows nothing of streams.

Read it in the order in which a run happens: `submit` (starts a run), `local_run` (the run's own process), `retraining`
(the pipeline), `steps` (one function per step, on paths), and the steps' insides: `collect` and `joining`, `train` and
`trainers`, `evaluate`, `deploy`, `publish`.
"""
