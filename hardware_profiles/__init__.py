"""Device profiles: what a device can execute, and what a fused kernel costs there."""
