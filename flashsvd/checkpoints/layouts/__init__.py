"""One file per published layout; each defines IMPORTER."""
