"""Where a new model version goes: the seam `DeployTarget` and its members."""
