"""Numbers for a policy: metrics, divergence, predicted costs, verification."""
