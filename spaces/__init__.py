"""The captured model, its channel groups and layers, the choices about them, and policies."""
