"""Bitstreams by the SHA-256 of their bytes: `medium.py` says what they lie in, `store.py` is what the service uses."""
