"""Storages that several processes or hosts share a search in."""
