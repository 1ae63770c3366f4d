"""What users import for a host. Each module needs its host installed, and is imported by name."""
