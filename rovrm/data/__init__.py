"""From a source (a file, a folder, a hub id, the world) to examples."""
