"""Files of format version 1 that every later version must read, what wrote them, and how they are checked."""
