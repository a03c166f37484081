"""What every room uses: errors, files, the room on a disk, intervals."""
