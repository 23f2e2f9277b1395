"""The search: exact seeds, exploration, durable runs, verified fronts."""
