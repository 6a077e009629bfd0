"""The papers' tables: which runs they need, and what came out beside what was published."""
