"""Other libraries' members as ours, and ours as theirs: one module a library, imported only when asked for."""

__all__: list[str] = []
