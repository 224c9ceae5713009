"""What every layer rests on: settings, errors, paths, atomic files, locks, provenance, the published numbers."""
