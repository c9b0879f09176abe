"""Retraining: the steps, the Kubeflow pipeline made of them, and where a model goes. Knows nothing of streams."""
