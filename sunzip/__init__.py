"""sunzip: learned compression and an archive format for 12-channel images of the Sun."""

__version__ = "0.1.0"
