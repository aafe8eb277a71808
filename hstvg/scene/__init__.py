"""Dynamic Scene Syntax: what happens in a clip, as data that can be written, read and rendered."""
