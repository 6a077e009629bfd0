"""A store in the memory of one process, for ranks that are its threads."""

import threading


class MemoryStore:
    where = "memory"

    def __init__(self):
        self._lock, self.values = threading.Lock(), {}

    def set(self, key, value):
        with self._lock:
            self.values[key] = bytes(value)

    def first(self, key, value):
        with self._lock:
            return self.values.setdefault(key, value.encode()).decode()

    def get(self, key):
        with self._lock:
            return self.values.get(key)

    def get_all(self, keys):
        with self._lock:
            return [self.values[key] for key in keys]

    def has(self, keys):
        with self._lock:
            return all(key in self.values for key in keys)

    def delete(self, key):
        with self._lock:
            self.values.pop(key, None)

    def leave(self, all_ended):
        """Nobody holds it."""
