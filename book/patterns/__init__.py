"""The chapter "Communication patterns"."""
