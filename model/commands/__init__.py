"""The commands of `tcm`, one file a subject."""
